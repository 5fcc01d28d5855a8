import * as z from 'zod'
import { evaluationTokens, textSource, type TextSource } from '../calibration/source.js'
import { batched, splitWindows } from '../calibration/windows.js'
import { SparseGptError } from '../errors.js'
import type { Model } from '../models/model.js'
import type { Tensor } from '../native/device.js'
import { parseOptions } from '../pruning/options.js'
import { abortable } from '../abort.js'

export interface PerplexityOptions extends TextSource {
  /** Tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** Evaluate the first `windows` windows only. Default: all. */
  windows?: number
  /** Called after each step with the share of the work done, in (0, 1]. */
  onProgress?: (fraction: number) => void
  signal?: AbortSignal
}

export interface Perplexity {
  /** exp(mean over windows of the mean next-token loss). */
  perplexity: number
  /** Tokens of the whole text. */
  tokens: number
  /** Windows evaluated. */
  windows: number
  sequenceLength: number
}

const schema = textSource.extend({
  sequenceLength: z.int().min(2).optional(),
  windows: z.int().min(1).optional(),
  onProgress: z.custom<(fraction: number) => void>((value) => typeof value === 'function').optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/** Tokens that travel through all blocks together; bounds the memory for hidden states. */
const tokensAtOnce = 32768

/**
 * Perplexity over non-overlapping windows, as in the SparseGPT paper.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_TEXT (shorter than one window), NON_FINITE, ABORTED.
 */
export async function perplexity(model: Model, options: PerplexityOptions): Promise<Perplexity> {
  const o = parseOptions(schema.strict(), options, 'perplexity')
  const sequenceLength = model.sequenceLength(o.sequenceLength)
  const tokens = await evaluationTokens(model, o, { sequenceLength, signal: o.signal })
  const windows = splitWindows(tokens, sequenceLength, o.windows)
  const perBatch = model.windowsPerBatch(sequenceLength)
  const chunks = batched(windows, Math.max(1, Math.floor(tokensAtOnce / sequenceLength)))

  // The units of progress: a batch through a block, or through the head.
  const batches = chunks.reduce((count, chunk) => count + Math.ceil(chunk.length / perBatch), 0)
  const steps = batches * (model.architecture.blockCount + 1)
  let done = 0
  const step = () => o.onProgress?.(++done / steps)

  let sum = 0
  let index = 0
  for (const chunk of chunks) {
    const losses = await windowLosses(model, chunk, perBatch, step, o.signal)
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
    tokens: tokens.length,
    windows: windows.length,
    sequenceLength,
  }
}

/** The mean next-token loss of each window. */
async function windowLosses(
  model: Model,
  windows: readonly Int32Array[],
  perBatch: number,
  step: () => void,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const groups = batched(windows, perBatch)
  const batches = model.embed(groups)
  const owned: Tensor[] = []
  const kept: Tensor[] = []
  try {
    for (const [index, weights] of model.blocks()) {
      abortable(signal)
      await model.passBlock(index, weights, batches, { step })
    }
    const stored = model.architecture.head(model.weights)
    const head = model.device.within(kept, () => model.device.resident(stored))
    const results: number[] = []
    for (const [g, group] of groups.entries()) {
      abortable(signal)
      const hidden = batches[g]?.hidden as Tensor
      const losses = model.device.within(owned, () => {
        // The token after each position; the last position of a window predicts nothing, so its target is any token.
        const targets = new Int32Array(hidden.rows)
        group.forEach((window, i) => targets.set(window.subarray(1), i * window.length))
        const { architecture, weights, device } = model
        const x = architecture.finish(weights, device, hidden)
        const uploaded = device.upload(targets, [targets.length])
        return device.crossEntropy(x, head, uploaded, {
          bias: architecture.headBias?.(weights),
          softcap: architecture.logitSoftcap,
        })
      })
      const values = await model.device.readFloat32(losses)
      for (const tensor of owned) tensor.dispose()
      owned.length = 0
      let offset = 0
      for (const window of group) {
        let total = 0
        for (let t = 0; t < window.length - 1; t++) total += values[offset + t] ?? 0
        results.push(total / (window.length - 1))
        offset += window.length
      }
      step()
    }
    model.device.releasePages(stored)
    return results
  } finally {
    for (const batch of batches) batch.hidden.dispose()
    for (const tensor of [...owned, ...kept]) tensor.dispose()
  }
}
