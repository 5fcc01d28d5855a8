import { describe, expect, test } from '@jest/globals'
import { pruneLayer, type PruneLayerOptions } from '../../src/index.js'
import { PythonRandom } from '../../src/text/python-random.js'
import { expectError } from '../temporary.js'

const rows = 12
const columns = 16
const weight = Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(12.9898 * (i + 1)))
const hessian = new Float32Array(columns * columns)
for (let i = 0; i < columns; i++) {
  for (let j = 0; j < columns; j++) hessian[i * columns + j] = (i === j ? 2 : 0) + 1 / (1 + Math.abs(i - j))
}
/** An ArrayBuffer that can be resized: newer than the declarations that this project compiles with. */
type ResizableBuffer = ArrayBuffer & { resize(bytes: number): void }

const layer = { rows, columns, weight, hessian }
const changed = (array: Float32Array, index: number, value: number) =>
  array.map((old, i) => (i === index ? value : old))

describe('what is not finite or not definite is a typed error', () => {
  test.each<[string, Partial<PruneLayerOptions>, 'NON_FINITE' | 'NOT_POSITIVE_DEFINITE']>([
    ['NaN in the weight', { weight: changed(weight, 20, NaN) }, 'NON_FINITE'],
    ['infinity in the weight', { weight: changed(weight, 20, -Infinity) }, 'NON_FINITE'],
    ['NaN in the Hessian', { hessian: changed(hessian, 3, NaN) }, 'NON_FINITE'],
    ['infinity in the Hessian', { hessian: changed(hessian, 3, Infinity) }, 'NON_FINITE'],
    ['a negative Hessian', { hessian: hessian.map((value) => -value) }, 'NOT_POSITIVE_DEFINITE'],
    [
      'an indefinite Hessian',
      { hessian: hessian.map((value, i) => (i % 17 ? 100 : value)) },
      'NOT_POSITIVE_DEFINITE',
    ],
    ['NaN on the diagonal for wanda', { method: 'wanda', hessian: changed(hessian, 17, NaN) }, 'NON_FINITE'],
    [
      'a negative entry on the diagonal for wanda',
      { method: 'wanda', hessian: changed(hessian, 17, -0.5) },
      'NOT_POSITIVE_DEFINITE',
    ],
  ])('%s', async (_, options, code) => {
    await expectError(pruneLayer({ ...layer, ...options }), code, /^pruneLayer: /)
  })

  test('the message names the column that is negative', async () => {
    const negative = pruneLayer({ ...layer, method: 'wanda', hessian: changed(hessian, 17, -0.5) })
    await expectError(negative, 'NOT_POSITIVE_DEFINITE', /diagonal is -0\.5 in column 1/)
  })
})

describe('kept weights are fitted', () => {
  /** tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), H damped by a hundredth of each entry of its diagonal. */
  const error = (result: Float32Array) => {
    const energy = (w: Float32Array) => {
      let sum = 0
      for (let r = 0; r < rows; r++)
        for (let i = 0; i < columns; i++)
          for (let j = 0; j < columns; j++) {
            const h = hessian[i * columns + j]! * (i === j ? 1.01 : 1)
            sum += w[r * columns + i]! * h * w[r * columns + j]!
          }
      return sum
    }
    return energy(weight.map((value, i) => value - result[i]!)) / energy(weight)
  }

  test.each(['sparsegpt', 'admm', 'wanda', 'magnitude'] as const)('%s', async (method) => {
    const { fit, mask, weight: result } = await pruneLayer({ ...layer, method, pattern: '2:4', refit: true })
    expect(fit!.after).toBeLessThan(fit!.before * (1 + 1e-6))
    expect(fit!.after).toBeCloseTo(error(result), 4)
    expect(mask.reduce((sum, bit) => sum + bit, 0)).toBe((rows * columns) / 2)
    result.forEach((value, i) => {
      if (mask[i]) expect(value).toBe(0)
    })
    // No small change of a kept weight makes it better.
    for (const i of [0, 1, 2, 3].filter((at) => !mask[at]))
      for (const step of [-0.01, 0.01]) {
        expect(error(changed(result, i, result[i]! + step))).toBeGreaterThan(fit!.after)
      }
  })

  test('admm takes a mask as it is, and zeros stay', async () => {
    const mask = Uint8Array.from(weight, (_, i) => i % 2)
    const sparse = changed(weight, 6, 0)
    const result = await pruneLayer({ ...layer, weight: sparse, method: 'admm', mask })
    result.weight.forEach((value, i) => expect([i, value === 0]).toEqual([i, i % 2 === 1 || i === 6]))
    expect(result.mask[6]).toBe(1)
  })

  test.each([{ method: 'admm' }, { method: 'magnitude', refit: true }] as const)(
    '%j needs a Hessian, one of a Gram matrix',
    async (options) => {
      const { hessian: _, ...rest } = layer
      await expectError(pruneLayer({ ...rest, ...options }), 'INVALID_OPTION', /option hessian: is needed/)
      const negative = pruneLayer({ ...layer, ...options, hessian: changed(hessian, 17, -0.5) })
      await expectError(negative, 'NOT_POSITIVE_DEFINITE', /diagonal is -0\.5 in column 1/)
      const nan = pruneLayer({ ...layer, ...options, hessian: changed(hessian, 3, NaN) })
      await expectError(nan, 'NON_FINITE', /Hessian has a NaN/)
    },
  )
})

describe('weights of any size', () => {
  test.each([1e19, 1e25, 1e-25, 1e-30])('are pruned alike and have a loss, times %d', async (size) => {
    const usual = await pruneLayer(layer)
    const result = await pruneLayer({ ...layer, weight: weight.map((value) => value * size) })
    expect(result.mask).toEqual(usual.mask)
    expect(result.loss! / size / size / usual.loss!).toBeCloseTo(1, 4)
  })

  test.each([1e-45, 1e-42, 1e-39, 3e38])('are rounded, times %d', async (size) => {
    const result = await pruneLayer({
      ...layer,
      hessian: hessian.map((value, i) => (i % 17 ? 0 : value)),
      weight: weight.map((value) => value * size),
      bits: 4,
    })
    expect(result.weight.every(Number.isFinite)).toBe(true)
    expect(result.loss).toBeGreaterThanOrEqual(0)
    expect(result.loss).toBeLessThan(Infinity)
  })
})

describe('grids of groups', () => {
  const [rows, columns] = [12, 128]
  const random = new PythonRandom(5)
  const normal = () =>
    Array.from({ length: 12 }, () => random.randint(-500, 500)).reduce((a, b) => a + b) / 1000
  const grouped = {
    rows,
    columns,
    weight: Float32Array.from({ length: rows * columns }, normal),
    hessian: Float32Array.from({ length: columns ** 2 }, (_, i) => (i % (columns + 1) ? 0.1 : 1)),
    sparsity: 0.5,
    bits: 3,
  }
  const groups = (result: Float32Array) =>
    Array.from({ length: result.length / 32 }, (_, g) => result.slice(g * 32, (g + 1) * 32))

  test('have 2^bits levels in a group, and a smaller loss than those of rows', async () => {
    const [row, group] = [await pruneLayer(grouped), await pruneLayer({ ...grouped, groupSize: 32 })]
    for (const values of groups(group.weight)) expect(new Set(values).size).toBeLessThanOrEqual(8)
    expect(groups(row.weight).some((values) => new Set(values).size > 1)).toBe(true)
    expect(group.loss).toBeLessThan(row.loss!)
  })

  test('are symmetric where that is asked for', async () => {
    const { weight } = await pruneLayer({ ...grouped, groupSize: 32, symmetric: true })
    groups(weight).forEach((values, g) => {
      const source = grouped.weight.slice(g * 32, (g + 1) * 32)
      const step = Math.max(...source.map(Math.abs)) / 3.5
      for (const value of values) {
        const level = value / step
        expect(Math.abs(level - Math.round(level))).toBeLessThan(1e-4)
        expect(Math.round(level)).toBeGreaterThanOrEqual(-4)
        expect(Math.round(level)).toBeLessThanOrEqual(3)
      }
    })
  })

  test('clip finds steps of a smaller loss', async () => {
    const dense = { ...grouped, sparsity: 0, groupSize: 64 }
    const [whole, searched] = [await pruneLayer(dense), await pruneLayer({ ...dense, clip: true })]
    expect(searched.loss).toBeLessThan(whole.loss!)
  })

  test.each([
    [{ groupSize: 48 }, /option groupSize: must be 32, 64 or 128/],
    [{ groupSize: 32, bits: undefined }, /option groupSize: needs bits/],
    [{ clip: true, bits: undefined }, /option clip: needs bits/],
    [{ symmetric: true, bits: undefined }, /option symmetric: needs bits/],
    [{ groupSize: 32, blockSize: 48 }, /option groupSize: .*blockSize 48/],
    [{ groupSize: 32, sparsity: undefined, pattern: '3:64' }, /option groupSize: .*pattern's 64/],
    [
      {
        groupSize: 128,
        columns: 64,
        weight: new Float32Array(rows * 64),
        hessian: new Float32Array(64 * 64),
      },
      /option groupSize: needs a number of columns divisible by 128, not 64/,
    ],
  ])('refuses %j', async (options, message) => {
    await expectError(pruneLayer({ ...grouped, ...options } as PruneLayerOptions), 'INVALID_OPTION', message)
  })
})

describe('the arrays are read before pruneLayer returns', () => {
  const mask = Uint8Array.from(weight, (_, i) => (i % 3 === 0 ? 1 : 0))
  const variants = [
    ['by sparsity', {}],
    ['by mask', { mask }],
    ['by wanda', { method: 'wanda' }],
  ] as const

  /** The arrays in buffers of their own, large enough that a native thread still reads them when it must not. */
  const resizable = (array: Float32Array | Uint8Array) => {
    const buffer = Reflect.construct(ArrayBuffer, [
      array.byteLength,
      { maxByteLength: 2 * array.byteLength },
    ]) as ResizableBuffer
    new Uint8Array(buffer).set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength))
    return buffer
  }
  const tampering: [string, (buffer: ResizableBuffer) => void][] = [
    ['overwritten', (buffer) => new Uint8Array(buffer).fill(255)],
    ['transferred', (buffer) => void structuredClone(buffer, { transfer: [buffer] })],
    ['shrunk', (buffer) => buffer.resize(0)],
  ]
  for (const [variant, options] of variants) {
    test.each(tampering)(`${variant}: they may be %s meanwhile`, async (_, tamper) => {
      const expected = await pruneLayer({ ...layer, ...options })
      const buffers = [resizable(weight), resizable(hessian), resizable(mask)] as const
      const pending = pruneLayer({
        ...layer,
        ...options,
        weight: new Float32Array(buffers[0]),
        hessian: new Float32Array(buffers[1]),
        ...('mask' in options ? { mask: new Uint8Array(buffers[2]) } : {}),
      })
      buffers.forEach(tamper)
      expect(await pending).toEqual(expected)
    })
  }

  test('they may be shared memory', async () => {
    const shared = <T extends Float32Array | Uint8Array>(
      array: T,
      make: new (buffer: SharedArrayBuffer) => T,
    ) => {
      const copy = new make(new SharedArrayBuffer(array.byteLength))
      copy.set(array)
      return copy
    }
    const options = {
      ...layer,
      weight: shared(weight, Float32Array),
      hessian: shared(hessian, Float32Array),
      mask: shared(mask, Uint8Array),
    }
    expect(await pruneLayer(options)).toEqual(await pruneLayer({ ...layer, mask }))
  })

  test('arrays that are gone already are refused', async () => {
    const gone = new Float32Array(weight)
    structuredClone(gone.buffer, { transfer: [gone.buffer] })
    await expectError(
      pruneLayer({ ...layer, weight: gone }),
      'INVALID_OPTION',
      /option weight: must have .* 192 elements/,
    )
    const hessianGone = new Float32Array(hessian)
    structuredClone(hessianGone.buffer, { transfer: [hessianGone.buffer] })
    await expectError(
      pruneLayer({ ...layer, hessian: hessianGone }),
      'INVALID_OPTION',
      /option hessian: must have/,
    )
  })
})

test('zeros stay zeros and count towards the goal', async () => {
  const sparse = weight.map((value, i) => (i % 10 < 7 ? 0 : value))
  const kept = sparse.filter((value) => value !== 0).length
  for (const options of [
    { sparsity: 0 },
    { sparsity: 0.5 },
    { pattern: '2:4' },
    { pattern: '1:2', bits: 4 },
    { sparsity: 0.5, bits: 3 },
    { mask: new Uint8Array(weight.length) },
  ]) {
    const result = await pruneLayer({ ...layer, weight: sparse, ...options })
    sparse.forEach((value, i) => value === 0 && expect([result.weight[i], result.mask[i]]).toEqual([0, 1]))
    if (!('pattern' in options)) expect(result.mask.filter((bit) => bit === 0)).toHaveLength(kept)
  }
})
