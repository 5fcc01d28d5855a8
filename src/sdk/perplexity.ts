import * as z from 'zod'
import { evaluationTokens, textSource, type TextSource } from '../text/source.js'
import { batched, splitWindows } from '../text/windows.js'
import { SparseGptError } from '../errors.js'
import type { Batch, Engine } from '../models/engine.js'
import type { Head } from '../models/head.js'
import { Communicator, endingAll, partOf } from '../native/communicator.js'
import type { Device, Tensor } from '../native/device.js'
import { parseOptions, path, type PathOrUrl } from '../options.js'
import { engineOf, openDense, type Model } from './model.js'
import { abortable } from '../abort.js'

/** The text, and how much of it is evaluated. */
export interface PerplexityOptions extends TextSource {
  /** The number of tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** The number of windows to evaluate, from the first on. Default: all. */
  windows?: number
  /** The model to compare with, such as the one that was pruned: its folder, or its id on the hub. Default: none. */
  against?: PathOrUrl
  /** The ranks that measure together, each a part of the windows, as with `prune`. Default: this process alone. */
  communicator?: Communicator
  /** A function that is called after each step with the share of the work done, in (0, 1]. */
  onProgress?: (fraction: number) => void
  /** A signal that stops the evaluation (ABORTED). */
  signal?: AbortSignal
}

/** The result of an evaluation. */
export interface Perplexity {
  /** The perplexity: exp(mean over windows of the mean next-token loss). */
  perplexity: number
  /** How far the model is from another; with the option `against`. */
  against?: Comparison
  /** The number of tokens of the text, as far as the windows have needed it. */
  tokens: number
  /** The number of windows evaluated. */
  windows: number
  /** The number of tokens per window. */
  sequenceLength: number
}

/** How far a model is from another, by what both predict behind every position of a text. */
export interface Comparison {
  /** The mean of KL(other ‖ model) of the next-token distributions, in nats. */
  divergence: number
  /** The share of positions where the likeliest next token is the same. */
  top1Agreement: number
  /** The perplexity of the model, divided by that of the other. */
  perplexityRatio: number
}

const schema = textSource.extend({
  sequenceLength: z.int().min(2).optional(),
  windows: z.int().min(1).optional(),
  against: path.optional(),
  communicator: z.instanceof(Communicator).optional(),
  onProgress: z.custom<(fraction: number) => void>((value) => typeof value === 'function').optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/** The number of tokens that travel through all blocks together; it bounds the memory for hidden states. */
const tokensAtOnce = 32768

/**
 * Measures the perplexity over non-overlapping windows, as in the SparseGPT paper.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, INVALID_CHECKPOINT (tokenizer), DOWNLOAD_FAILED, WRITE_FAILED (the cache), INVALID_TEXT
 * (shorter than one window), NON_FINITE, ABORTED; and what loadModel throws for `against`.
 */
export async function perplexity(model: Model, options: PerplexityOptions): Promise<Perplexity> {
  return (await preparePerplexity(model, options))()
}

/**
 * Reads and checks all that `perplexity` needs besides the weights: the text, its encoding, its length. Returns the measurement, which
 * sees the weights as they are when it is called. Throws as `perplexity` does.
 */
export async function preparePerplexity(
  model: Model,
  options: PerplexityOptions,
): Promise<() => Promise<Perplexity>> {
  const engine = engineOf(model, 'perplexity')
  const o = parseOptions(schema.strict(), options, 'perplexity')
  const { communicator } = o
  return endingAll(
    communicator,
    engine.job(o.signal, async (signal) => {
      const sequenceLength = engine.sequenceLength(o.sequenceLength)
      const read = () => evaluationTokens(engine, o, { sequenceLength, windows: o.windows, signal })
      const tokens = communicator
        ? await communicator.share(engine.device, communicator.rank === 0 ? await read() : new Int32Array(0))
        : await read()
      const windows = splitWindows(tokens, sequenceLength, o.windows)
      const run = async (stop: AbortSignal) => {
        const options = { ...o, signal: stop }
        if (o.against === undefined) return measure([engine], windows, tokens.length, options)
        const other = await openDense(engine, o.against, 'perplexity', options)
        try {
          return await measure([engine, other], windows, tokens.length, options)
        } finally {
          other.weights.dispose()
        }
      }
      return () => endingAll(communicator, engine.job(o.signal, run))
    }),
  )
}

/** A model, and beside it perhaps the one to compare with. */
type Engines = readonly [model: Engine, other?: Engine]

async function measure(
  engines: Engines,
  windows: readonly Int32Array[],
  tokens: number,
  o: Pick<z.output<typeof schema>, 'onProgress' | 'signal' | 'communicator'>,
): Promise<Perplexity> {
  const [engine] = engines
  const { communicator } = o
  const sequenceLength = windows[0]!.length
  const perBatch = engine.windowsPerBatch(sequenceLength)
  const ownWindows = communicator ? partOf(windows, communicator) : windows
  const chunks = batched(ownWindows, Math.max(1, Math.floor(tokensAtOnce / sequenceLength)))

  // The units of progress: a batch through a block of a model, or through the head.
  const batches = chunks.reduce((count, chunk) => count + Math.ceil(chunk.length / perBatch), 0)
  const steps = batches * (engines.length * engine.architecture.blockCount + 1)
  let done = 0
  const step = () => o.onProgress?.(++done / steps)

  const own: Measured = { losses: [], otherLoss: 0, divergence: 0, agreed: 0 }
  for (const chunk of chunks) {
    const measured = await windowLosses(engines, chunk, perBatch, step, o.signal)
    own.losses.push(...measured.losses)
    own.otherLoss += measured.otherLoss
    own.divergence += measured.divergence
    own.agreed += measured.agreed
  }
  const parts = communicator ? await communicator.gather(engine.device, own) : [own]
  const total = (of: (part: Measured) => number) => parts.reduce((sum, part) => sum + of(part), 0)
  let [loss, index] = [0, 0]
  for (const ofWindow of parts.flatMap(({ losses }) => losses)) {
    if (!Number.isFinite(ofWindow)) {
      const message = `the loss of window ${index} is ${ofWindow}: the model's weights or activations are not finite`
      throw new SparseGptError('NON_FINITE', message)
    }
    loss += ofWindow
    index++
  }
  const positions = windows.length * sequenceLength
  const against = {
    divergence: total(({ divergence }) => divergence) / positions,
    top1Agreement: total(({ agreed }) => agreed) / positions,
    perplexityRatio: Math.exp((loss - total(({ otherLoss }) => otherLoss)) / windows.length),
  }
  return {
    perplexity: Math.exp(loss / windows.length),
    ...(engines.length > 1 && { against }),
    tokens,
    windows: windows.length,
    sequenceLength,
  }
}

/** The hidden states behind the last block. */
async function lastStates(
  engine: Engine,
  groups: readonly (readonly Int32Array[])[],
  step: () => void,
  signal: AbortSignal | undefined,
): Promise<Batch[]> {
  const batches = engine.embed(groups)
  try {
    for (const [index, weights] of engine.blocks()) {
      abortable(signal)
      await engine.passBlock(index, weights, batches, { step })
    }
    return batches
  } catch (error) {
    for (const { hidden } of batches) hidden.dispose()
    throw error
  }
}

/** What some windows give. */
interface Measured {
  /** The mean next-token loss of each window. */
  losses: number[]
  /** Sums of the comparison, if there is one: over windows the other model's losses, over positions the rest. */
  otherLoss: number
  divergence: number
  agreed: number
}

async function windowLosses(
  [engine, other]: Engines,
  windows: readonly Int32Array[],
  perBatch: number,
  step: () => void,
  signal: AbortSignal | undefined,
): Promise<Measured> {
  const { device } = engine
  const groups = batched(windows, perBatch)
  const [batches, heads]: [Batch[], Head[]] = [[], []]
  try {
    batches.push(...(await lastStates(engine, groups, step, signal)))
    if (other) batches.push(...(await lastStates(other, groups, step, signal)))
    const head = engine.head()
    heads.push(head)
    const otherHead = other?.head()
    if (otherHead) heads.push(otherHead)
    const measured: Measured = { losses: [], otherLoss: 0, divergence: 0, agreed: 0 }
    for (const [g, group] of groups.entries()) {
      abortable(signal)
      const { hidden } = batches[g]!
      // The token after each position; the last position of a window predicts nothing, so its target is any token.
      const targets = new Int32Array(hidden.rows)
      group.forEach((window, i) => targets.set(window.subarray(1), i * window.length))
      const own = await predicted(device, head, hidden, targets, otherHead !== undefined)
      const losses = meanLosses(group, own.losses)
      measured.losses.push(...losses)
      if (otherHead) {
        const reference = batches[groups.length + g]!.hidden
        const theirs = await predicted(device, otherHead, reference, targets, true)
        for (const loss of meanLosses(group, theirs.losses)) measured.otherLoss += loss
        for (const [t, id] of own.likeliest!.entries()) if (id === theirs.likeliest![t]) measured.agreed++
        const apart = device.tidy(() => head.divergence(hidden, otherHead, reference))
        measured.divergence += (await device.readFloat32(apart)).reduce((a, b) => a + b, 0)
        apart.dispose()
      }
      step()
    }
    return measured
  } finally {
    for (const head of heads) head.dispose()
    for (const batch of batches) batch.hidden.dispose()
  }
}

/** The loss of predicting each target, and, if they are wanted, the likeliest tokens. */
async function predicted(
  device: Device,
  head: Head,
  hidden: Tensor,
  targets: Int32Array,
  wantsLikeliest: boolean,
): Promise<{ losses: Float32Array; likeliest?: Int32Array }> {
  const { length } = targets
  const made = device.tidy(() => {
    const likeliest = wantsLikeliest ? device.empty('int32', [length]) : undefined
    const losses = head.losses(hidden, device.upload(targets, [length]), likeliest)
    return likeliest ? [losses, likeliest] : [losses]
  })
  try {
    const losses = await device.readFloat32(made[0]!)
    return made[1] ? { losses, likeliest: (await device.read(made[1])) as Int32Array } : { losses }
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}

/** The mean loss of each window; that behind its last token does not count. */
function meanLosses(windows: readonly Int32Array[], losses: Float32Array): number[] {
  let end = 0
  return windows.map(({ length }) => {
    const own = losses.subarray(end, end + length - 1)
    end += length
    return own.reduce((sum, loss) => sum + loss, 0) / own.length
  })
}
