import { afterEach, expect, test } from '@jest/globals'
import type { LinearGroup } from '../../src/models/steps.js'
import { Device, type Tensor } from '../../src/native/device.js'
import { gramMatrix } from '../../src/pruning/statistic.js'
import { Statistics } from '../../src/pruning/statistics.js'

const device = new Device('cpu', 1)
const statistics = new Statistics(device, gramMatrix, 1, () => true)
afterEach(() => statistics.dispose())

/** The inputs of expert `e`: `rows` tokens of two columns, all of them [e + 1, 0]. */
function group(e: number, rows: number): LinearGroup {
  const input: Tensor = device.upload(
    Float32Array.from({ length: rows * 2 }, (_, i) => (i % 2 === 0 ? e + 1 : 0)),
    [rows, 2],
  )
  return { names: [`experts.${e}.w2`], input, pool: 'experts.w2' }
}

const corner = async (sum: Tensor) => (await device.readFloat32(sum))[0]

test('an expert that saw fewer tokens than it has inputs gets the statistics of all experts', async () => {
  const groups = [group(0, 3), group(1, 1), group(2, 0)]
  for (const one of groups) statistics.add(one)
  const taken = statistics.takeAll()
  expect(taken.map(({ pooled, tokens }) => [pooled, tokens])).toEqual([
    [false, 3],
    [true, 1],
    [true, 0],
  ])
  // 3 · 1² + 1 · 2² in the pool.
  expect(await Promise.all(taken.map(({ sum }) => corner(sum)))).toEqual([3, 7, 7])
})

test('taken one by one, the pool is what came before', async () => {
  const groups = [group(0, 0), group(1, 1), group(2, 4), group(3, 1)]
  for (const one of groups) statistics.add(one)
  const taken = groups.map((one) => statistics.take(one)!)
  expect(taken.map(({ pooled }) => pooled)).toEqual([false, false, false, true])
  expect(await Promise.all(taken.map(({ sum }) => corner(sum)))).toEqual([0, 4, 36, 56])
})
