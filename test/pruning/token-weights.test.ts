import { afterAll, describe, expect, test } from '@jest/globals'
import { loadModel, prune, type PruneOptions } from '../../src/index.js'
import { engineOf } from '../../src/sdk/model.js'
import { Device, type Tensor } from '../../src/native/device.js'
import { gramMatrix } from '../../src/pruning/statistic.js'
import { Statistics } from '../../src/pruning/statistics.js'
import { blockChanges, tokenFactors } from '../../src/pruning/token-weights.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const device = new Device('cpu', 1)
const made: Tensor[] = []
afterAll(async () => {
  for (const tensor of made) tensor.dispose()
  await device.close()
})
const upload = (values: Float32Array | Int32Array, shape: number[]) =>
  device.within(made, () => device.upload(values, shape))

// Squared sizes of 1, 4, 1, 1 and 0.
const input = () => upload(Float32Array.of(1, 0, 0, 2, 0, 1, -1, 0, 0, 0), [5, 2])

describe('the factors of tokens', () => {
  test('are roots of change / size relative to the median, and at least 1', async () => {
    const changes = Float32Array.of(90, 40, 0.5, 10, 1000)
    // The shares are 90, 10, 0.5, 10 and, of a row of zeros, 0.
    expect([...(await tokenFactors(device, { input: input() }, changes))]).toEqual([3, 1, 1, 1, 1])
  })

  test('of an expert are those of the tokens that came to it', async () => {
    const changes = Float32Array.of(0, 0, 10, 160, 40, 0, 10, 10)
    const tokens = upload(Int32Array.of(6, 4, 3, 2, 7), [5])
    expect([...(await tokenFactors(device, { input: input(), tokens }, changes))]).toEqual([1, 1, 4, 1, 1])
  })

  test('are all 1 where nothing changes', async () => {
    expect([...(await tokenFactors(device, { input: input() }, new Float32Array(5)))]).toEqual([
      1, 1, 1, 1, 1,
    ])
  })

  test('scale the rows of both streams', async () => {
    const statistics = new Statistics(device, gramMatrix, 1, () => true)
    const dense = upload(Float32Array.of(2, 0, 0, 2, 0, 1, -1, 0, 5, 5), [5, 2])
    const changes = Float32Array.of(90, 40, 0.5, 10, 1000)
    await statistics.add({ names: ['q'], input: input() }, { names: ['q'], input: dense }, changes)
    const [{ sum, shift } = {}] = statistics.takeAll()
    made.push(sum!, shift!)
    const [gram, moved] = await Promise.all([device.readFloat32(sum!), device.readFloat32(shift!)])
    // 9 · 1 + 1; 4 + 1 below. The first token alone moves: 9 · 1 · (2 - 1).
    expect([gram[0], gram[1], gram[3]]).toEqual([10, 0, 5])
    expect([...moved]).toEqual([9, 0, 0, 0])
  })
})

test('what a block adds to its tokens is measured without changing them', async () => {
  const model = await loadModel(await writeTinyModel(await temporaryFolder()), { device: 'cpu', threads: 1 })
  const engine = engineOf(model, 'test')
  const windows = [1, 2].map((seed) => [Int32Array.from(randomTokens(8, seed))])
  const batches = engine.embed(windows)
  const weights = engine.loadBlock(0)
  const before = await Promise.all(batches.map(({ hidden }) => engine.device.readFloat32(hidden)))
  let steps = 0
  const changes = await blockChanges(engine, 0, weights, batches, { step: () => steps++ })
  expect([steps, changes.map(({ length }) => length)]).toEqual([2, [8, 8]])
  await engine.passBlock(0, weights, batches)
  for (const [i, { hidden }] of batches.entries()) {
    const [x, y] = [before[i]!, await engine.device.readFloat32(hidden)]
    const width = x.length / 8
    changes[i]!.forEach((change, t) => {
      const row = [...x.subarray(t * width, (t + 1) * width)]
      const expected = row.reduce((sum, value, j) => sum + (y[t * width + j]! - value) ** 2, 0)
      expect(Math.abs(change / expected - 1)).toBeLessThan(1e-4)
    })
    hidden.dispose()
  }
  weights.dispose()
  await model.dispose()
})

describe('pruning with tokens that count by change', () => {
  const calibration = { tokens: randomTokens(600), samples: 6, sequenceLength: 32 }
  const pruned = async (options: PruneOptions) => {
    const model = await loadModel(await writeTinyModel(await temporaryFolder()), {
      device: 'cpu',
      threads: 1,
    })
    try {
      return (await prune(model, { calibration, sparsity: 0.5, ...options })).layers.map(({ loss }) => loss)
    } finally {
      await model.dispose()
    }
  }

  test.each(['block', 'layer'] as const)(
    'by %s, differs from the even way and goes to the end',
    async (sequential) => {
      const even = await pruned({ sequential })
      let fraction = 0
      const onProgress: PruneOptions['onProgress'] = (at) => (fraction = at.fraction)
      const weighted = await pruned({ sequential, tokenWeights: 'change', onProgress })
      expect(weighted).not.toEqual(even)
      expect(weighted.every(Number.isFinite)).toBe(true)
      expect(fraction).toBe(1)
    },
  )

  test('is refused where the text is not looked at', async () => {
    const options = { method: 'magnitude', tokenWeights: 'change' } as const
    await expectError(pruned(options), 'INVALID_OPTION', /option tokenWeights: .*"magnitude"/)
    expect(await pruned({ ...options, refit: true })).toHaveLength(14)
  })
})
