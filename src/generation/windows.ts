import { SparseGptError } from '../errors.js'
import type { Engine } from '../models/engine.js'
import { PythonRandom } from '../text/python-random.js'
import { Decoder } from './decoder.js'
import { ResidentModel } from './resident-model.js'
import { chooseToken, type Sampling } from './sampling.js'
import { endTokens } from './stop.js'

/** What is generated. */
export interface WindowOptions extends Sampling {
  /** The number of windows. */
  count: number
  /** The number of tokens of each window, the first one included. */
  length: number
  /** The number of windows that are generated at once. */
  batch: number
  /** The seed of the choices; every window has one of its own that follows from it, so that `batch` changes nothing but rounding. */
  seed: number
  signal?: AbortSignal | undefined
  /** A function that is called after every token of a batch with the share of the work done, in (0, 1]. */
  onProgress?: ((fraction: number) => void) | undefined
}

/**
 * Windows of tokens that a model makes up from the token on that texts begin with (where there is none, that ends them), which also
 * goes on after the end of a text, as windows of a training set do. Throws INVALID_OPTION for windows longer than the context,
 * INVALID_CHECKPOINT when neither token is known, NON_FINITE, ABORTED.
 */
export async function generateWindows(engine: Engine, options: WindowOptions): Promise<Int32Array[]> {
  const { count, length, batch, signal } = options
  engine.checkSequence(length)
  const { bos, eos } = await endTokens(engine)
  const first = [...bos, ...eos].find((id) => id >= 0 && id < engine.vocabularySize)
  if (first === undefined) {
    const message = `${engine.folder}: neither generation_config.json nor config.json has a bos_token_id or an eos_token_id to begin a text with`
    throw new SparseGptError('INVALID_CHECKPOINT', message)
  }
  const groups: Int32Array[][] = []
  for (let from = 0; from < count; from += batch) {
    const windows = Math.min(batch, count - from)
    groups.push(Array.from({ length: windows }, () => new Int32Array(length).fill(first, 0, 1)))
  }
  const model = await ResidentModel.load(engine, Math.min(batch, count), { signal })
  try {
    let done = 0
    const step = (tokens: number) => options.onProgress?.((done += tokens) / (count * (length - 1)))
    for (const [g, group] of groups.entries()) {
      const randoms = group.map((_, i) => new PythonRandom(options.seed + g * batch + i))
      await fill(model, group, randoms, options, step)
    }
    return groups.flat()
  } finally {
    model.dispose()
  }

  /** Fills windows of which the first token is there. */
  async function fill(
    resident: ResidentModel,
    windows: readonly Int32Array[],
    randoms: readonly PythonRandom[],
    sampling: Sampling,
    step: (tokens: number) => void,
  ): Promise<void> {
    const { vocabularySize } = engine
    const decoder = new Decoder(resident, windows.length, length)
    try {
      for (let t = 1; t < length; t++) {
        const logits = await decoder.logits(
          windows.map((window) => window.subarray(0, t)),
          signal,
        )
        for (const [i, window] of windows.entries()) {
          const row = logits.subarray(i * vocabularySize, (i + 1) * vocabularySize)
          window[t] = chooseToken(row, sampling, randoms[i]!)
        }
        step(windows.length)
      }
    } finally {
      decoder.dispose()
    }
  }
}
