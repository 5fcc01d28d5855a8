/**
 * The slope of each head, float32 [heads], of attention with linear biases (Press et al. 2022, arXiv 2108.12409): geometric
 * from 2^(-8 / heads) when the head count is a power of two; else those of the next lower power of two, followed by every
 * other one of the next higher.
 */
export function alibiSlopes(heads: number): Float32Array {
  const lower = 2 ** Math.floor(Math.log2(heads))
  return Float32Array.from({ length: heads }, (_, h) =>
    h < lower ? 2 ** ((-8 * (h + 1)) / lower) : 2 ** ((-8 * (2 * (h - lower) + 1)) / (2 * lower)),
  )
}
