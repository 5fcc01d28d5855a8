import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import type { Batch, Engine } from '../models/engine.js'
import { PackedBatch, PackedBlock, tokensOf } from './packed-batch.js'
import { prefixGroups, type PrefixGroup } from './prefix-groups.js'

/** A text that is scored behind another, both as token ids, at least one each. */
export interface Request {
  context: Int32Array
  continuation: Int32Array
}

/** How likely a continuation is. */
export interface Likelihood {
  /** The logarithm of its probability: the sum over its tokens. */
  loglikelihood: number
  /** Whether each of its tokens is the likeliest there; undefined unless it was asked for. */
  greedy?: boolean
}

export interface LikelihoodOptions {
  /** Whether to find out if the continuations are greedy. */
  greedy: boolean
  signal?: AbortSignal | undefined
  /** A function that is called after each step with the share of the work done, in (0, 1]. */
  onProgress?: ((fraction: number) => void) | undefined
}

/** The number of tokens that travel through all blocks together; it bounds the memory for hidden states. */
const tokensAtOnce = 32768

/** A token to predict: its place in an input, and whose it is. */
interface Target {
  input: Int32Array
  position: number
  id: number
  request: number
}

/**
 * The likelihood of each continuation behind its context. What does not fit in the model's context is cut off at the left. Inputs that
 * are the same run once, and so does what several begin with.
 *
 * Throws INVALID_TEXT for a continuation that is longer than the model's context, NON_FINITE, ABORTED.
 */
export async function loglikelihoods(
  engine: Engine,
  requests: readonly Request[],
  options: LikelihoodOptions,
): Promise<Likelihood[]> {
  const { targets, inputs } = targetsOf(engine, requests)
  const batches = batchesOf(engine, inputs)
  const results = requests.map((): Likelihood => ({
    loglikelihood: 0,
    ...(options.greedy && { greedy: true }),
  }))
  const steps = batches.length * (engine.architecture.blockCount + 1)
  let done = 0
  const step = () => options.onProgress?.(++done / steps)
  for (const chunk of chunksOf(batches)) {
    for (const { target, loss, likeliest } of await scored(engine, chunk, targets, options, step)) {
      const result = results[target.request]!
      result.loglikelihood -= loss
      if (likeliest !== undefined && likeliest !== target.id) result.greedy = false
    }
  }
  if (results.every(({ loglikelihood }) => Number.isFinite(loglikelihood))) return results
  const message = "a log-likelihood is not finite: the model's weights or activations are not"
  throw new SparseGptError('NON_FINITE', message)
}

/** The different inputs of the requests, and what is to be predicted in each. */
function targetsOf(
  engine: Engine,
  requests: readonly Request[],
): { inputs: Int32Array[]; targets: Map<Int32Array, Target[]> } {
  const { contextLength } = engine.architecture
  const known = new Map<string, Int32Array>()
  const targets = new Map<Int32Array, Target[]>()
  for (const [request, { context, continuation }] of requests.entries()) {
    if (continuation.length > contextLength) {
      const message = `a text of ${continuation.length} tokens is to be scored, but the model's context has only ${contextLength}: leave the question out, or take a model with a longer context`
      throw new SparseGptError('INVALID_TEXT', message)
    }
    // The last token is predicted, not read.
    const whole = new Int32Array(context.length + continuation.length)
    whole.set(context)
    whole.set(continuation, context.length)
    const own = whole.subarray(Math.max(0, whole.length - contextLength - 1), whole.length - 1)
    const key = own.join()
    const input = known.get(key) ?? own
    known.set(key, input)
    const list = targets.get(input) ?? []
    targets.set(input, list)
    const first = input.length - continuation.length
    for (const [t, id] of continuation.entries()) list.push({ input, position: first + t, id, request })
  }
  return { inputs: [...targets.keys()], targets }
}

/** The inputs in batches, the longest first; apart where the length of an input decides how its positions are rotated. */
function batchesOf(engine: Engine, inputs: readonly Int32Array[]): PackedBatch[] {
  const kinds = new Map<string, Int32Array[]>()
  const frequencies: unknown[] = []
  const numberOf = (of: unknown) => {
    if (!frequencies.includes(of)) frequencies.push(of)
    return frequencies.indexOf(of)
  }
  for (const input of inputs) {
    const kind = [...new Set(engine.frequencies(input.length))].map(numberOf).join()
    const alike = kinds.get(kind) ?? []
    kinds.set(kind, alike)
    alike.push(input)
  }
  return [...kinds.values()].flatMap((alike) => packed(prefixGroups(alike), engine.windowsPerBatch(1)))
}

/** The groups in batches of at most `most` tokens, but for a sequence that is longer; a larger group becomes several. */
function packed(groups: readonly PrefixGroup[], most: number): PackedBatch[] {
  const longest = ({ members }: PrefixGroup) =>
    members.reduce((length, member) => Math.max(length, member.length), 0)
  const parts = groups.flatMap((group) => divided(group, most)).sort((a, b) => longest(b) - longest(a))
  const batches: PackedBatch[] = []
  let pending: PrefixGroup[] = []
  let tokens = 0
  const close = () => {
    if (pending.length > 0) batches.push(new PackedBatch(pending))
    pending = []
    tokens = 0
  }
  for (const part of parts) {
    if (tokens + tokensOf(part) > most) close()
    pending.push(part)
    tokens += tokensOf(part)
  }
  close()
  return batches
}

function divided({ prefix, members }: PrefixGroup, most: number): PrefixGroup[] {
  const parts: Int32Array[][] = []
  let tokens = Infinity
  for (const member of members) {
    const own = member.length - prefix
    if (tokens + own > most) {
      parts.push([])
      tokens = prefix
    }
    parts.at(-1)!.push(member)
    tokens += own
  }
  return parts.map((part) => ({ prefix: part.length > 1 ? prefix : 0, members: part }))
}

/** The batches that travel together. */
function* chunksOf(batches: readonly PackedBatch[]): Generator<PackedBatch[]> {
  let chunk: PackedBatch[] = []
  let tokens = 0
  for (const batch of batches) {
    if (chunk.length > 0 && tokens + batch.ids.length > tokensAtOnce) {
      yield chunk
      chunk = []
      tokens = 0
    }
    chunk.push(batch)
    tokens += batch.ids.length
  }
  if (chunk.length > 0) yield chunk
}

/** What became of a target. */
interface Scored {
  target: Target
  /** The negative logarithm of its probability. */
  loss: number
  /** The likeliest token there, if it was asked for. */
  likeliest?: number
}

/** Runs the batches through the model. `step` is called after each batch of a block, and of the head. */
async function scored(
  engine: Engine,
  chunk: readonly PackedBatch[],
  targets: ReadonlyMap<Int32Array, readonly Target[]>,
  { greedy, signal }: LikelihoodOptions,
  step: () => void,
): Promise<Scored[]> {
  const { device } = engine
  const travelling: { batch: PackedBatch; at: Batch }[] = []
  try {
    for (const batch of chunk) travelling.push({ batch, at: embedded(engine, batch) })
    for (const [index, weights] of engine.blocks()) {
      abortable(signal)
      const pass = async ({ batch, at }: { batch: PackedBatch; at: Batch }) => {
        const run = engine.runBlock(
          index,
          weights,
          at,
          (placement) => new PackedBlock(device, weights, index, placement, batch),
        )
        const output = await run.finish()
        at.hidden.dispose()
        at.hidden = output
      }
      await engine.paced(travelling, pass, step)
    }
    const results: Scored[] = []
    const head = engine.head()
    try {
      for (const { batch, at } of travelling) {
        abortable(signal)
        const wanted = [...batch.sequences].flatMap((input) => targets.get(input)!)
        const rows = Int32Array.from(wanted, ({ input, position }) => batch.rowOf(input, position))
        const ids = Int32Array.from(wanted, ({ id }) => id)
        const [losses, likeliest] = device.tidy(() => {
          const hidden = device.embedding(at.hidden, device.upload(rows, [rows.length]), at.hidden.dtype)
          const top = greedy ? device.empty('int32', [ids.length]) : undefined
          const loss = head.losses(hidden, device.upload(ids, [ids.length]), top)
          return top ? [loss, top] : [loss]
        })
        const values = await device.readFloat32(losses)
        const tops = likeliest && (await device.read(likeliest))
        for (const tensor of [losses, likeliest]) tensor?.dispose()
        for (const [i, target] of wanted.entries())
          results.push({ target, loss: values[i]!, ...(tops && { likeliest: tops[i]! }) })
        step()
      }
    } finally {
      head.dispose()
    }
    return results
  } finally {
    for (const { at } of travelling) {
      at.hidden.dispose()
      at.positions?.dispose()
    }
  }
}

function embedded({ device, architecture, weights }: Engine, batch: PackedBatch): Batch {
  const { ids, longest } = batch
  const sequences = { count: 1, length: ids.length, start: 0, total: longest }
  const [positions, hidden] = weights.passing(() =>
    device.tidy(() => {
      const uploaded = device.upload(batch.positions, [ids.length])
      return [uploaded, architecture.embed(weights, device, device.upload(ids, [ids.length]), uploaded)]
    }),
  )
  return { sequences, hidden: hidden, positions: positions }
}
