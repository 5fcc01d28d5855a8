import { readFileSync } from 'node:fs'
import { expect, test } from '@jest/globals'
import { pruneLayer } from '../../src/index.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'

interface Case {
  name: string
  rows: number
  cols: number
  sparsity?: number
  n?: number
  m?: number
  mask?: number
  blocksize?: number
  percdamp?: number
  wbits?: number
  dead?: number[]
  loss: number
  outputError: number
}

// The reference computes H as 2 / samples · Σ x xᵀ.
describeWithShared('layers pruned by the reference implementation', () => {
  const folder = sharedPath('golden', 'layers') ?? ''
  const cases = JSON.parse(readFileSync(`${folder}/index.json`, 'utf8')) as Case[]

  test.each(cases)('$name', async (c) => {
    const tensors = await readTensors(`${folder}/${c.name}.safetensors`)
    const weight = tensors.get('weight')!.values
    const expected = tensors.get('expected')!.values
    const inputs = tensors.get('inputs')!
    const mask = tensors.get('mask')?.values
    const result = await pruneLayer({
      weight,
      rows: c.rows,
      columns: c.cols,
      hessian: tensors.get('hessian')!.values,
      ...(mask
        ? { mask: Uint8Array.from(mask) }
        : c.n
          ? { pattern: `${c.n}:${c.m}` }
          : { sparsity: c.sparsity! }),
      ...(c.blocksize ? { blockSize: c.blocksize } : {}),
      ...(c.percdamp ? { dampening: c.percdamp } : {}),
      ...(c.wbits ? { bits: c.wbits } : {}),
    })

    let differing = 0
    for (let i = 0; i < expected.length; i++) {
      if ((expected[i] === 0) !== (result.weight[i] === 0)) differing++
    }
    const agreement = 1 - differing / expected.length
    const ratio = outputError(weight, result.weight, inputs.values, c.rows, c.cols) / c.outputError
    if (c.n && !c.wbits) expect(agreement).toBe(1)
    expect(agreement).toBeGreaterThanOrEqual(c.wbits ? 0.98 : 0.998)
    expect(ratio).toBeGreaterThan(0.99)
    expect(ratio).toBeLessThan(c.wbits ? 1.02 : 1.005)
    expect(result.loss! / c.loss).toBeGreaterThan(0.98)
    expect(result.loss! / c.loss).toBeLessThan(c.wbits ? 1.02 : 1.005)
    expect(result.deadColumns).toBe(c.dead?.length ?? 0)
    if (mask) {
      for (let i = 0; i < expected.length; i++) {
        expect(Math.abs(result.weight[i]! - expected[i]!)).toBeLessThanOrEqual(
          1e-3 * Math.abs(expected[i]!) + 1e-6,
        )
      }
      expect(agreement).toBe(1)
    } else if (!c.n) {
      const block = c.blocksize ?? 128
      let count = 0
      for (let j = 0; j < c.cols; j += block)
        count += Math.trunc(c.rows * Math.min(block, c.cols - j) * c.sparsity!)
      expect(result.mask.reduce((sum, bit) => sum + bit, 0)).toBe(count)
    }
  })
})

/** ‖(W − Ŵ) X‖² over the inputs [tokens, columns]. */
function outputError(
  w: Float32Array,
  pruned: Float32Array,
  x: Float32Array,
  rows: number,
  columns: number,
): number {
  let total = 0
  const delta = w.map((value, i) => value - pruned[i]!)
  for (let t = 0; t < x.length / columns; t++) {
    for (let r = 0; r < rows; r++) {
      let sum = 0
      for (let j = 0; j < columns; j++) sum += delta[r * columns + j]! * x[t * columns + j]!
      total += sum * sum
    }
  }
  return total
}
