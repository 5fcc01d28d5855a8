import * as z from 'zod'
import { evaluationTokens, textSource, type TextSource } from '../text/source.js'
import { batched, splitWindows } from '../text/windows.js'
import { SparseGptError } from '../errors.js'
import type { Engine } from '../models/engine.js'
import { parseOptions } from '../options.js'
import { engineOf, type Model } from './model.js'
import { abortable } from '../abort.js'

/** The text, and how much of it is evaluated. */
export interface PerplexityOptions extends TextSource {
  /** The number of tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** The number of windows to evaluate, from the first on. Default: all. */
  windows?: number
  /** A function that is called after each step with the share of the work done, in (0, 1]. */
  onProgress?: (fraction: number) => void
  /** A signal that stops the evaluation (ABORTED). */
  signal?: AbortSignal
}

/** The result of an evaluation. */
export interface Perplexity {
  /** The perplexity: exp(mean over windows of the mean next-token loss). */
  perplexity: number
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
  onProgress: z.custom<(fraction: number) => void>((value) => typeof value === 'function').optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/** The number of tokens that travel through all blocks together; it bounds the memory for hidden states. */
const tokensAtOnce = 32768

/**
 * Measures the perplexity over non-overlapping windows, as in the SparseGPT paper.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, INVALID_CHECKPOINT (tokenizer), DOWNLOAD_FAILED, WRITE_FAILED (the cache), INVALID_TEXT
 * (shorter than one window), NON_FINITE, ABORTED.
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
  return engine.job(o.signal, async (signal) => {
    const sequenceLength = engine.sequenceLength(o.sequenceLength)
    const tokens = await evaluationTokens(engine, o, { sequenceLength, signal })
    const windows = splitWindows(tokens, sequenceLength, o.windows)
    return () =>
      engine.job(o.signal, (stop) => measure(engine, windows, tokens.length, { ...o, signal: stop }))
  })
}

async function measure(
  engine: Engine,
  windows: readonly Int32Array[],
  tokens: number,
  o: Pick<z.output<typeof schema>, 'onProgress' | 'signal'>,
): Promise<Perplexity> {
  const sequenceLength = windows[0]!.length
  const perBatch = engine.windowsPerBatch(sequenceLength)
  const chunks = batched(windows, Math.max(1, Math.floor(tokensAtOnce / sequenceLength)))

  // The units of progress: a batch through a block, or through the head.
  const batches = chunks.reduce((count, chunk) => count + Math.ceil(chunk.length / perBatch), 0)
  const steps = batches * (engine.architecture.blockCount + 1)
  let done = 0
  const step = () => o.onProgress?.(++done / steps)

  let sum = 0
  let index = 0
  for (const chunk of chunks) {
    const losses = await windowLosses(engine, chunk, perBatch, step, o.signal)
    for (const loss of losses) {
      if (!Number.isFinite(loss)) {
        const message = `the loss of window ${index} is ${loss}: the model's weights or activations are not finite`
        throw new SparseGptError('NON_FINITE', message)
      }
      sum += loss
      index++
    }
  }
  return {
    perplexity: Math.exp(sum / windows.length),
    tokens,
    windows: windows.length,
    sequenceLength,
  }
}

/** The mean next-token loss of each window. */
async function windowLosses(
  engine: Engine,
  windows: readonly Int32Array[],
  perBatch: number,
  step: () => void,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const { device } = engine
  const groups = batched(windows, perBatch)
  const batches = engine.embed(groups)
  try {
    for (const [index, weights] of engine.blocks()) {
      abortable(signal)
      await engine.passBlock(index, weights, batches, { step })
    }
    const head = engine.head()
    try {
      const results: number[] = []
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
        step()
      }
      return results
    } finally {
      head.dispose()
    }
  } finally {
    for (const batch of batches) batch.hidden.dispose()
  }
}
