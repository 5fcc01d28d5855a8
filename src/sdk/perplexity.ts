import * as z from 'zod'
import { evaluationTokens, textSource, type TextSource } from '../text/source.js'
import { batched, splitWindows } from '../text/windows.js'
import { SparseGptError } from '../errors.js'
import type { Batch, Engine } from '../models/engine.js'
import type { Head } from '../models/head.js'
import { Communicator, endingAll, partOf } from '../native/communicator.js'
import { parseOptions } from '../options.js'
import { engineOf, openDense, type Model } from './model.js'
import { abortable } from '../abort.js'

/** The text, and how much of it is evaluated. */
export interface PerplexityOptions extends TextSource {
  /** The number of tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** The number of windows to evaluate, from the first on. Default: all. */
  windows?: number
  /** The dense model to compare with: its folder, or its id on the hub. Default: none. */
  dense?: string
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
  /** The mean over all positions of KL(dense ‖ model), in nats, of the next-token distributions; with the option `dense`. */
  divergence?: number
  /** The number of tokens of the whole text. */
  tokens: number
  /** The number of windows evaluated. */
  windows: number
  /** The number of tokens per window. */
  sequenceLength: number
}

const schema = textSource.extend({
  sequenceLength: z.int().min(2).optional(),
  windows: z.int().min(1).optional(),
  dense: z.string().min(1).optional(),
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
 * (shorter than one window), NON_FINITE, ABORTED; and what loadModel throws for `dense`.
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
      const read = () => evaluationTokens(engine, o, { sequenceLength, signal })
      const tokens = communicator
        ? await communicator.share(engine.device, communicator.rank === 0 ? await read() : new Int32Array(0))
        : await read()
      const windows = splitWindows(tokens, sequenceLength, o.windows)
      const run = async (stop: AbortSignal) => {
        const options = { ...o, signal: stop }
        if (o.dense === undefined) return measure([engine], windows, tokens.length, options)
        const dense = await openDense(engine, o.dense, 'perplexity', options)
        try {
          return await measure([engine, dense], windows, tokens.length, options)
        } finally {
          dense.weights.dispose()
        }
      }
      return () => endingAll(communicator, engine.job(o.signal, run))
    }),
  )
}

/** A model, and beside it perhaps the dense one. */
type Engines = readonly [model: Engine, dense?: Engine]

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
  const own = communicator ? partOf(windows, communicator) : windows
  const chunks = batched(own, Math.max(1, Math.floor(tokensAtOnce / sequenceLength)))

  // The units of progress: a batch through a block of a model, or through the head.
  const batches = chunks.reduce((count, chunk) => count + Math.ceil(chunk.length / perBatch), 0)
  const steps = batches * (engines.length * engine.architecture.blockCount + 1)
  let done = 0
  const step = () => o.onProgress?.(++done / steps)

  const measured = { losses: [] as number[], divergence: 0 }
  for (const chunk of chunks) {
    const { losses, divergence } = await windowLosses(engines, chunk, perBatch, step, o.signal)
    measured.losses.push(...losses)
    measured.divergence += divergence
  }
  const parts = communicator ? await communicator.gather(engine.device, measured) : [measured]
  let [sum, index] = [0, 0]
  for (const loss of parts.flatMap(({ losses }) => losses)) {
    if (!Number.isFinite(loss)) {
      const message = `the loss of window ${index} is ${loss}: the model's weights or activations are not finite`
      throw new SparseGptError('NON_FINITE', message)
    }
    sum += loss
    index++
  }
  const divergence = parts.reduce((total, part) => total + part.divergence, 0)
  return {
    perplexity: Math.exp(sum / windows.length),
    ...(engines.length > 1 && { divergence: divergence / (windows.length * sequenceLength) }),
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

/** The mean next-token loss of each window, and the sum over positions of the divergence from the dense model, if there is one. */
async function windowLosses(
  [engine, dense]: Engines,
  windows: readonly Int32Array[],
  perBatch: number,
  step: () => void,
  signal: AbortSignal | undefined,
): Promise<{ losses: number[]; divergence: number }> {
  const { device } = engine
  const groups = batched(windows, perBatch)
  const [batches, heads]: [Batch[], Head[]] = [[], []]
  try {
    batches.push(...(await lastStates(engine, groups, step, signal)))
    if (dense) batches.push(...(await lastStates(dense, groups, step, signal)))
    const head = engine.head()
    heads.push(head)
    const denseHead = dense?.head()
    if (denseHead) heads.push(denseHead)
    const results: number[] = []
    let divergence = 0
    for (const [g, group] of groups.entries()) {
      abortable(signal)
      const { hidden } = batches[g]!
      // The token after each position; the last position of a window predicts nothing, so its target is any token.
      const targets = new Int32Array(hidden.rows)
      group.forEach((window, i) => targets.set(window.subarray(1), i * window.length))
      const losses = device.tidy(() => head.losses(hidden, device.upload(targets, [targets.length])))
      const values = await device.readFloat32(losses)
      losses.dispose()
      let offset = 0
      for (const window of group) {
        let total = 0
        for (let t = 0; t < window.length - 1; t++) total += values[offset + t] ?? 0
        results.push(total / (window.length - 1))
        offset += window.length
      }
      if (denseHead) {
        const reference = batches[groups.length + g]!.hidden
        const apart = device.tidy(() => head.divergence(hidden, denseHead, reference))
        divergence += (await device.readFloat32(apart)).reduce((a, b) => a + b, 0)
        apart.dispose()
      }
      step()
    }
    return { losses: results, divergence }
  } finally {
    for (const head of heads) head.dispose()
    for (const batch of batches) batch.hidden.dispose()
  }
}
