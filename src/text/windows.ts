import { SparseGptError } from '../errors.js'
import { PythonRandom } from './python-random.js'

/**
 * Calibration windows: for each of `samples`, in order, `sequenceLength` tokens from the offset
 * `randint(0, tokens - sequenceLength - 1)` of Python's generator seeded once with `seed`, as the paper's code draws
 * them. Windows may overlap; each is a copy of its own.
 *
 * @throws SparseGptError INVALID_TEXT when there are not more than `sequenceLength` tokens; INVALID_OPTION.
 */
export function drawWindows(
  tokens: Int32Array,
  options: { samples: number; sequenceLength: number; seed: number },
): Int32Array[] {
  const { samples, sequenceLength, seed } = options
  requirePositive('samples', samples)
  requirePositive('sequenceLength', sequenceLength)
  const random = new PythonRandom(seed)
  if (tokens.length <= sequenceLength) {
    throw new SparseGptError(
      'INVALID_TEXT',
      `the calibration text has ${tokens.length} tokens; windows of ${sequenceLength} tokens need at least ` +
        `${sequenceLength + 1}: give a longer text or a shorter sequence length`,
    )
  }
  const last = tokens.length - sequenceLength - 1
  return Array.from({ length: samples }, () => {
    const offset = random.randint(0, last)
    return tokens.slice(offset, offset + sequenceLength)
  })
}

/**
 * Windows to evaluate or to train on: the non-overlapping windows of `sequenceLength` tokens from the start, at most `limit`; a shorter
 * rest is dropped. Each is a copy of its own.
 *
 * @throws SparseGptError INVALID_TEXT when there is not one whole window; INVALID_OPTION.
 */
export function splitWindows(tokens: Int32Array, sequenceLength: number, limit?: number): Int32Array[] {
  requirePositive('sequenceLength', sequenceLength)
  if (limit !== undefined) requirePositive('windows', limit)
  const count = Math.min(Math.floor(tokens.length / sequenceLength), limit ?? Infinity)
  if (count === 0) {
    throw new SparseGptError(
      'INVALID_TEXT',
      `the text has ${tokens.length} tokens; a window needs ${sequenceLength}: ` +
        'give a longer text or a shorter sequence length',
    )
  }
  return Array.from({ length: count }, (_, i) => tokens.slice(i * sequenceLength, (i + 1) * sequenceLength))
}

/** The windows in groups of `size`; the last may be smaller. */
export function batched(windows: readonly Int32Array[], size: number): Int32Array[][] {
  const count = Math.ceil(windows.length / size)
  return Array.from({ length: count }, (_, i) => windows.slice(i * size, (i + 1) * size))
}

/** The windows in groups of one length each, of at most `size(length)`: in order, where all are of one length. */
export function batchedByLength(
  windows: readonly Int32Array[],
  size: (length: number) => number,
): Int32Array[][] {
  const alike = new Map<number, Int32Array[]>()
  for (const window of windows) {
    const others = alike.get(window.length) ?? []
    alike.set(window.length, others)
    others.push(window)
  }
  return [...alike].flatMap(([length, group]) => batched(group, size(length)))
}

function requirePositive(option: string, value: number): void {
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new SparseGptError(
      'INVALID_OPTION',
      `${option}: ${value} is not allowed; it must be an integer of at least 1`,
    )
  }
}
