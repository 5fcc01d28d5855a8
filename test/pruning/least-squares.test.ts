import { afterAll, describe, expect, test } from '@jest/globals'
import { Device, type Tensor } from '../../src/native/device.js'
import { prepareSolver, solveLayer } from '../../src/pruning/layer-solver.js'
import { LeastSquares } from '../../src/pruning/least-squares.js'
import { sparsegpt } from '../../src/pruning/methods/sparsegpt.js'
import { gramMatrix } from '../../src/pruning/statistic.js'
import { Statistics } from '../../src/pruning/statistics.js'
import { PythonRandom } from '../../src/text/python-random.js'

const device = new Device('cpu', 2)
const made: Tensor[] = []
afterAll(async () => {
  for (const tensor of made) tensor.dispose()
  await device.close()
})

const [rows, columns, tokens] = [7, 24, 90]
const random = new PythonRandom(3)
const numbers = (count: number) => Array.from({ length: count }, () => random.randint(-1000, 1000) / 500)
type Matrix = number[][]
const matrix = (height: number, width: number): Matrix => Array.from({ length: height }, () => numbers(width))
const transposed = (a: Matrix) => a[0]!.map((_, j) => a.map((row) => row[j]!))
const product = (a: Matrix, b: Matrix) => {
  const right = transposed(b)
  return a.map((row) => right.map((column) => row.reduce((sum, value, k) => sum + value * column[k]!, 0)))
}
const combined = (a: Matrix, f: number, b: Matrix) =>
  a.map((row, i) => row.map((value, j) => value + f * b[i]![j]!))

/** Solves x A = b for one row, over the columns of `kept`; the others are zero. */
function solve(a: Matrix, b: number[], kept: number[]): number[] {
  const m = kept.map((i) => [...kept.map((j) => a[i]![j]!), b[i]!])
  const size = kept.length
  for (let k = 0; k < size; k++)
    for (let i = 0; i < size; i++) {
      if (i === k) continue
      const f = m[i]![k]! / m[k]![k]!
      for (let j = k; j <= size; j++) m[i]![j]! -= f * m[k]![j]!
    }
  const x = Array<number>(b.length).fill(0)
  kept.forEach((column, k) => (x[column] = m[k]![size]! / m[k]![k]!))
  return x
}

const upload = (values: Matrix) =>
  device.within(made, () =>
    device.upload(Float32Array.from(values.flat()), [values.length, values[0]!.length]),
  )
const all = Array.from({ length: columns }, (_, j) => j)

/** Inputs that are correlated and of very different sizes; column 5 is always zero. */
const scales = all.map((j) => (j === 5 ? 0 : 10 ** ((j % 5) - 2)))
const mix = matrix(columns, columns)
const inputs = (): Matrix =>
  product(matrix(tokens, columns), mix).map((row) => row.map((value, j) => value * scales[j]!))
const pruned = inputs()
const dense = combined(pruned, 0.1, inputs())
const gram = product(transposed(pruned), pruned)

/** H, damped by a share of each entry of the diagonal. */
const damped = (dampening: number) =>
  gram.map((row, i) => row.map((value, j) => (i === j ? value * (1 + dampening) || 1 : value)))

/** What calibration collects of both streams. */
function statistics() {
  const collected = new Statistics(device, gramMatrix, 1, () => true)
  for (const [from, to] of [
    [0, 40],
    [40, tokens],
  ]) {
    const [input, reference] = [pruned, dense].map((x) => upload(x.slice(from, to)))
    collected.add({ names: ['q'], input: input! }, { names: ['q'], input: reference! })
  }
  const [group] = collected.takeAll()
  made.push(group!.sum, group!.shift!)
  return group!
}

function expectClose(actual: Float32Array, expected: Matrix, tolerance: number) {
  const flat = expected.flat()
  const norm = Math.hypot(...flat)
  const gap = Math.hypot(...flat.map((value, i) => value - actual[i]!))
  expect(gap / norm).toBeLessThan(tolerance)
}

describe('against a direct solution in float64', () => {
  const weight = matrix(rows, columns)
  const { sum, shift } = statistics()

  test('the shift between the streams is summed over batches', async () => {
    const expected = product(transposed(pruned), combined(dense, -1, pruned))
    expectClose(await device.readFloat32(shift!), expected, 1e-5)
  })

  test.each([
    [0.5, 0.1],
    [1, 0.01],
  ])('weights towards the dense stream, alpha %d, dampening %d', async (alpha, dampening) => {
    await device.within(made, async () => {
      const squares = new LeastSquares(device, device.cast(sum, 'float32'), dampening)
      const goal = squares.towards(upload(weight), shift!, alpha)
      squares.leave(goal)
      // W' H = W (H + alpha S): as near as it gets to the mixed outputs, and near W.
      const cross = product(transposed(combined(dense, -1, pruned)), pruned)
      const h = damped(dampening)
      const right = product(weight, combined(h, alpha, cross))
      const expected = right.map((row) => solve(h, row, all).map((value, j) => (j === 5 ? 0 : value)))
      expectClose(await device.readFloat32(goal), expected, 2e-3)
    })
  })

  test('kept weights are refitted, others stay zero; the errors are those of the outputs', async () => {
    await device.within(made, async () => {
      const kept = weight.map((_, i) => all.filter((j) => (i * 7 + j * 3) % 4 < 2 && j !== 5))
      const start = weight.map((row, i) => row.map((value, j) => (kept[i]!.includes(j) ? value : 0)))
      const squares = new LeastSquares(device, device.cast(sum, 'float32'), 0.01)
      const goal = upload(weight)
      squares.enter(goal)
      const fitted = upload(start)
      const fit = await squares.fit(fitted, goal, 1e-3)
      const h = damped(0.01)
      const right = product(weight, h)
      const expected = right.map((row, i) => solve(h, row, kept[i]!))
      const actual = await device.readFloat32(fitted)
      const h0 = h.map((row, i) => row.map((value, j) => (i === 5 || j === 5 ? 0 : value)))
      const error = (x: Matrix) => {
        const gap = combined(weight, -1, x)
        const square = (a: Matrix) =>
          product(a, h0).reduce((total, row, i) => total + row.reduce((t, v, j) => t + v * a[i]![j]!, 0), 0)
        return square(gap) / square(weight)
      }
      expect(fit.before).toBeCloseTo(error(start), 4)
      expect(fit.after / error(expected)).toBeGreaterThan(0.999)
      expect(fit.after / error(expected)).toBeLessThan(1.002)
      expect(fit.after).toBeLessThan(0.8 * fit.before)
      expect(fit.iterations).toBeGreaterThan(1)
      expected.flat().forEach((value, i) => {
        if (value === 0) expect(actual[i]).toBe(0)
      })
      expectClose(
        actual.map((value, i) => value * scales[i % columns]!),
        expected.map((row) => row.map((value, j) => value * scales[j]!)),
        0.03,
      )
    })
  })

  test('without a fit the loss is told, and what it is a share of', async () => {
    await device.within(made, async () => {
      const settings = { blockSize: 128, dampening: 0.01 }
      const own = { sum: device.cast(sum, 'float32'), shift: undefined }
      const solver = prepareSolver(device, sparsegpt, settings, own, { refit: false, alpha: 1 })
      const matrix = upload(weight)
      const { loss, energy, fit } = await solveLayer(device, solver, matrix, { sparsity: 0.5 })
      const left = await device.readFloat32(matrix)
      // Damped by a share of the mean of the diagonal, in which an input that is always zero has a one.
      const mean = gram.reduce((total, row, i) => total + (row[i]! || 1), 0) / columns
      const h = gram.map((row, i) =>
        row.map((v, j) => (i === 5 || j === 5 ? 0 : i === j ? v + 0.01 * mean : v)),
      )
      const half = (a: Matrix) =>
        product(a, h).reduce((total, row, i) => total + row.reduce((t, v, j) => t + v * a[i]![j]!, 0), 0) / 2
      const gap = weight.map((row, i) => row.map((value, j) => value - left[i * columns + j]!))
      expect(loss! / half(gap)).toBeCloseTo(1, 4)
      expect(energy! / half(weight)).toBeCloseTo(1, 4)
      expect(energy!).toBeGreaterThan(loss!)
      expect(fit).toBeUndefined()
    })
  })
})
