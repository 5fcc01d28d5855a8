import { SparseGptError } from '../errors.js'
import type { PythonRandom } from '../text/python-random.js'

/** How the next token is chosen from its logits. */
export interface Sampling {
  /** What the logits are divided by; 0: always the token with the highest one. */
  temperature: number
  /** Only the tokens with the `topK` highest logits, and those that equal the last of them; undefined for all. */
  topK?: number | undefined
  /** Then only the fewest of the likeliest tokens whose probabilities sum to at least `topP`; undefined for all. */
  topP?: number | undefined
}

/**
 * Chooses a token id by its logits: divided by the temperature, then cut by topK, then by topP, as transformers does. Of equal logits
 * the lower id is the first. Throws NON_FINITE.
 */
export function chooseToken(
  logits: Float32Array,
  { temperature, topK, topP }: Sampling,
  random: PythonRandom,
): number {
  const best = highest(logits)
  const top = logits[best]!
  if (!Number.isFinite(top)) {
    const message = `a logit is ${top}: the model's weights or activations are not finite`
    throw new SparseGptError('NON_FINITE', message)
  }
  if (temperature === 0) return best
  const weight = (id: number) => Math.exp((logits[id]! - top) / temperature)
  let ids: ArrayLike<number> | undefined
  if (topK !== undefined && topK < logits.length) ids = likeliest(logits, topK)
  if (topP !== undefined && topP < 1) ids = nucleus(logits, ids, weight, topP, top, temperature)
  return draw(ids, logits.length, weight, random)
}

/** The id with the highest logit; one that is NaN wins. */
function highest(logits: Float32Array): number {
  let best = 0
  for (let id = 1; id < logits.length; id++) {
    const logit = logits[id]!
    if (logit > logits[best]! || Number.isNaN(logit)) best = id
    if (Number.isNaN(logits[best])) break
  }
  return best
}

/** The ids of the `count` highest logits, and of those that equal the lowest of these, in the order of the ids. */
function likeliest(logits: Float32Array, count: number): number[] {
  const lowest = logits.slice().sort()[logits.length - count]!
  const ids: number[] = []
  for (let id = 0; id < logits.length; id++) if (logits[id]! >= lowest) ids.push(id)
  return ids
}

/** The fewest of `candidates` (undefined: all ids), likeliest first, whose weights sum to at least the share `topP` of all weights. */
function nucleus(
  logits: Float32Array,
  candidates: ArrayLike<number> | undefined,
  weight: (id: number) => number,
  topP: number,
  top: number,
  temperature: number,
): number[] {
  const size = candidates?.length ?? logits.length
  let total = 0
  for (let i = 0; i < size; i++) total += weight(candidates?.[i] ?? i)
  // Few tokens carry most of the weight: only those above a bound are sorted, which is lowered until they suffice.
  for (let depth = 8; ; depth *= 4) {
    const bound = depth < 1000 ? top - depth * temperature : -Infinity
    const some: number[] = []
    for (let i = 0; i < size; i++) {
      const id = candidates?.[i] ?? i
      if (logits[id]! >= bound) some.push(id)
    }
    some.sort((a, b) => logits[b]! - logits[a]! || a - b)
    let sum = 0
    for (const [i, id] of some.entries()) {
      sum += weight(id)
      if (sum >= topP * total || (bound === -Infinity && i === some.length - 1)) return some.slice(0, i + 1)
    }
  }
}

/** One of `ids` (undefined: all below `size`) with a probability that goes with its weight. */
function draw(
  ids: ArrayLike<number> | undefined,
  size: number,
  weight: (id: number) => number,
  random: PythonRandom,
): number {
  // Plain loops: a vocabulary has a hundred thousand tokens.
  const count = ids?.length ?? size
  const weights = new Float64Array(count)
  let total = 0
  for (let i = 0; i < count; i++) total += weights[i] = weight(ids ? ids[i]! : i)
  let left = random.random() * total
  let last = 0
  for (let i = 0; i < count; i++) {
    if (weights[i] === 0) continue
    last = i
    left -= weights[i]!
    if (left < 0) break
  }
  return ids?.[last] ?? last
}
