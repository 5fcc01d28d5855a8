import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { pruneLayer } from '../../src/index.js'

/** A layer of any shape with the Gram matrix of random inputs. */
const layer = fc
  .record({
    rows: fc.integer({ min: 1, max: 37 }),
    columns: fc.integer({ min: 1, max: 61 }),
    tokens: fc.integer({ min: 1, max: 90 }),
    sparsity: fc.double({ min: 0, max: 0.95, noNaN: true }),
    blockSize: fc.integer({ min: 1, max: 70 }),
    seed: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
  })
  .map(({ seed, ...rest }) => {
    const uniform = generator(seed)
    const { rows, columns, tokens } = rest
    const weight = Float32Array.from({ length: rows * columns }, uniform)
    const inputs = Float32Array.from({ length: tokens * columns }, uniform)
    const hessian = new Float32Array(columns * columns)
    for (let i = 0; i < columns; i++) {
      for (let j = 0; j < columns; j++) {
        let sum = 0
        for (let t = 0; t < tokens; t++) sum += inputs[t * columns + i]! * inputs[t * columns + j]!
        hessian[i * columns + j] = (2 * sum) / tokens
      }
    }
    return { ...rest, weight, hessian, mask: Uint8Array.from(weight, () => (uniform() < 0 ? 1 : 0)) }
  })

/** Uniform in (-1, 1): xorshift, so that a seed shrinks to a case. */
function generator(seed: number): () => number {
  let state = seed
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state / 2 ** 31
  }
}

const close = (a: number, b: number, tolerance: number) =>
  expect(Math.abs(a - b)).toBeLessThanOrEqual(tolerance * Math.max(Math.abs(a), Math.abs(b), 1e-6))

test('the loss is ½ tr(ΔW H ΔWᵀ) with the damped H, and the count is exact', async () => {
  await fc.assert(
    fc.asyncProperty(layer, async ({ rows, columns, sparsity, blockSize, weight, hessian }) => {
      const dampening = 0.01
      const result = await pruneLayer({ weight, rows, columns, hessian, sparsity, blockSize, dampening })
      const diagonal = Array.from({ length: columns }, (_, j) => hessian[j * columns + j]!)
      const damp = (result.dampening!.used * diagonal.reduce((a, b) => a + b, 0)) / columns
      let trace = 0
      for (let r = 0; r < rows; r++) {
        const delta = result.weight
          .subarray(r * columns, (r + 1) * columns)
          .map((q, j) => weight[r * columns + j]! - q)
        for (let i = 0; i < columns; i++) {
          for (let j = 0; j < columns; j++) {
            trace += delta[i]! * (hessian[i * columns + j]! + (i === j ? damp : 0)) * delta[j]!
          }
        }
      }
      close(result.loss!, trace / 2, 2e-3)
      let count = 0
      for (let j = 0; j < columns; j += blockSize)
        count += Math.trunc(rows * Math.min(blockSize, columns - j) * sparsity)
      expect(result.mask.reduce((a, b) => a + b, 0)).toBe(count)
    }),
    { numRuns: 60 },
  )
})

test('for a given mask the block size changes nothing but rounding', async () => {
  await fc.assert(
    fc.asyncProperty(layer, fc.integer({ min: 1, max: 70 }), async (c, otherSize) => {
      const { rows, columns, blockSize, weight, hessian, mask } = c
      const one = await pruneLayer({ weight, rows, columns, hessian, mask, blockSize })
      const other = await pruneLayer({ weight, rows, columns, hessian, mask, blockSize: otherSize })
      expect(other.mask).toEqual(one.mask)
      const scale = Math.max(...one.weight.map(Math.abs), 1e-3)
      const apart = one.weight.map((value, i) => Math.abs(value - other.weight[i]!))
      expect(Math.max(...apart)).toBeLessThan(2e-3 * scale)
      expect(one.weight.filter((value, i) => one.mask[i] === 1 && value !== 0)).toHaveLength(0)
    }),
    { numRuns: 60 },
  )
})
