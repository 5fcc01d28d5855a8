import { prune, type PruneOptions } from '../loose-options.js'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import {
  loadModel,
  plan,
  type Model,
  type PruneProgress,
  type PruneReport,
  type Recipe,
} from '../../src/index.js'
import { leastDamage, outlierShares } from '../../src/pruning/allocation/shares.js'
import { damageOfBlocks } from '../../src/pruning/allocation/sensitivity.js'
import { selectLayers } from '../../src/pruning/pipeline.js'
import { sparsegpt } from '../../src/pruning/methods/sparsegpt.js'
import { engineOf } from '../../src/sdk/model.js'
import { calibrationWindows } from '../../src/text/source.js'
import { drawWindows } from '../../src/text/windows.js'
import { unlikeModels } from '../models/golden-models.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(600), samples: 8, sequenceLength: 32 }
const measured = ['owl', 'sensitivity'] as const

async function withLoaded<T>(folder: string, body: (model: Model) => Promise<T>): Promise<T> {
  const model = await loadModel(folder, { device: 'cpu', threads: 1 })
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

const pruned = (folder: string, options: PruneOptions): Promise<PruneReport> =>
  withLoaded(folder, (model) => prune(model, { calibration, ...options }))

const weightsOf = ({ rows, columns }: { rows: number; columns: number }) => rows * columns

let llama: string
let gpt2: string
beforeAll(async () => {
  // The first block's weights grow along the rows, so that the blocks differ in their outliers.
  const grow = (name: string, values: Float32Array) => {
    if (name.includes('layers.0.mlp'))
      values.forEach((value, i) => (values[i] = value * Math.exp((i % 17) / 3)))
  }
  llama = await writeTinyModel(await temporaryFolder(), 'llama', grow)
  gpt2 = await writeTinyModel(await temporaryFolder(), 'gpt2')
})

describe('the shares of blocks', () => {
  const mean = (shares: number[], weights: number[]) =>
    shares.reduce((sum, share, i) => sum + share * weights[i]!, 0) / weights.reduce((a, b) => a + b, 0)

  test.each([0.05, 0.3, 0.7, 0.97])(
    'by outliers: in goal ± λ, with the mean %d, fewer zeros for more outliers',
    (goal) => {
      const outliers = [0.01, 0.02, 0.02, 0.3, 0.011]
      const weights = [10, 20, 20, 500, 30]
      const shares = outlierShares(
        outliers.map((share, i) => ({ weights: weights[i]!, outliers: share })),
        goal,
        0.08,
      )
      expect(mean(shares, weights)).toBeCloseTo(goal, 12)
      for (const share of shares) {
        expect(Math.abs(share - goal)).toBeLessThanOrEqual(0.08 + 1e-12)
        expect(share).toBeGreaterThanOrEqual(0)
        expect(share).toBeLessThan(1)
      }
      expect(shares[1]).toBeCloseTo(shares[2]!, 12)
      expect(shares[3]).toBeLessThan(shares[0]!)
    },
  )

  test('by outliers: where no bound is met, as the paper has them', () => {
    // Density: outliers scaled to a range of 2 λ, their mean at 1 - goal.
    const shares = outlierShares(
      [0, 0.5, 1].map((outliers) => ({ weights: 7, outliers })),
      0.6,
      0.08,
    )
    expect(shares.map((share) => Number(share.toFixed(9)))).toEqual([0.68, 0.6, 0.52])
  })

  test('by damage: the sum is least among all that have the goal', () => {
    // Exponential damages are what the model of them is exact for.
    const shares = [0.55, 0.7, 0.85] as const
    const curves = [
      { factor: 1, rise: 4, weights: 10 },
      { factor: 0.3, rise: 6, weights: 30 },
      { factor: 2, rise: 5, weights: 10 },
      { factor: 0.9, rise: 5, weights: 10 },
    ]
    const damageAt = ({ factor, rise }: (typeof curves)[number], share: number) =>
      factor * Math.exp(rise * share)
    const total = (found: number[]) => curves.reduce((sum, curve, i) => sum + damageAt(curve, found[i]!), 0)
    const found = leastDamage(
      curves.map((curve) => ({
        weights: curve.weights,
        shares,
        damage: shares.map((share) => damageAt(curve, share)) as [number, number, number],
      })),
      0.7,
    )
    const weights = curves.map((curve) => curve.weights)
    expect(mean(found, weights)).toBeCloseTo(0.7, 12)
    expect(total(found)).toBeLessThan(0.99 * total(curves.map(() => 0.7)))
    // Moving zeros from one block to another makes it worse, unless a bound is met.
    for (const [i, from] of found.entries()) {
      for (const [j, to] of found.entries()) {
        const moved = [...found]
        moved[i] = from - 0.01 / weights[i]!
        moved[j] = to + 0.01 / weights[j]!
        if (i === j || moved[i] < shares[0] || moved[j] > shares[2]) continue
        expect(total(moved)).toBeGreaterThan(total(found))
      }
    }
  })

  test.each([[[0, 0, 0]], [[5, 1, 0.5]], [[0, 1e-9, 3]]])(
    'by damage: %j, which no curve fits, still meets the goal',
    (damage) => {
      const shares = [0.35, 0.5, 0.65] as const
      const blocks = [damage, [0.1, 0.2, 0.4]].map((each) => ({
        weights: 3,
        shares,
        damage: each as [number, number, number],
      }))
      const found = leastDamage(blocks, 0.5)
      expect(mean(found, [3, 3])).toBeCloseTo(0.5, 12)
      for (const share of found) expect(Math.abs(share - 0.5)).toBeLessThanOrEqual(0.15 + 1e-12)
    },
  )
})

describe.each(measured)('allocation %s', (allocation) => {
  test.each(['sparsegpt', 'admm', 'wanda', 'magnitude'] as const)(
    'meets the goal with %s',
    async (method) => {
      const { layers, sparsity, targets } = await pruned(llama, { method, allocation, sparsity: 0.6 })
      expect(sparsity.target).toBeCloseTo(0.6, 9)
      expect(targets).toHaveLength(2)
      expect(targets![0]).not.toBeCloseTo(targets![1]!, 2)
      for (const { name, sparsity, target, rows, columns } of layers) {
        expect(target).toBe(targets![name.includes('layers.0.') ? 0 : 1])
        // Within the rounding of the method: to weights, or of each row; with magnitude weights of equal size go together.
        const rounding =
          method === 'wanda' ? 1 / columns : (method === 'magnitude' ? 20 : 2) / (rows * columns) + 1e-9
        expect([name, Math.abs(sparsity - target!) <= rounding]).toEqual([name, true])
      }
    },
  )

  test.each([
    { refit: true, target: 'dense' },
    { reconstruct: 1 },
    { sequential: 'layer' },
    { bits: 4 },
    { minBlock: 1 },
    { exclude: 'mlp' },
  ] as const)('goes with %j', async (options) => {
    const { layers, sparsity, targets } = await pruned(llama, { allocation, sparsity: 0.6, ...options })
    expect(sparsity.target).toBeCloseTo(0.6, 9)
    expect(sparsity.achieved).toBeCloseTo(0.6, 1)
    if ('minBlock' in options) expect(targets).toEqual([null, expect.closeTo(0.6, 9)])
    expect(layers).toHaveLength('minBlock' in options ? 7 : 'exclude' in options ? 8 : 14)
  })

  test('is the same offloaded, and whatever the number of threads', async () => {
    const options = { allocation, sparsity: 0.6 }
    const { targets } = await pruned(gpt2, options)
    expect((await pruned(gpt2, { ...options, offload: await temporaryFolder() })).targets).toEqual(targets)
    const model = await loadModel(gpt2, { device: 'cpu', threads: 3 })
    expect((await prune(model, { calibration, ...options })).targets).toEqual(targets)
    await model.dispose()
  })

  test('can be stopped, tells its progress, and leaves the model as it was', async () => {
    await withLoaded(llama, async (model) => {
      const ids = [[1, 2, 3, 4]]
      const before = await model.logits(ids)
      const controller = new AbortController()
      const stopped = prune(model, {
        calibration,
        allocation,
        signal: controller.signal,
        onProgress: ({ phase, block }) => {
          if (phase === 'allocate' && block === 1) controller.abort()
        },
      })
      await expectError(stopped, 'ABORTED', /stopped/)
      expect(await model.logits(ids)).toEqual(before)
      const seen: PruneProgress[] = []
      await prune(model, { calibration, allocation, onProgress: (progress) => seen.push(progress) })
      const measuring = seen.filter(({ phase }) => phase === 'allocate')
      expect(new Set(measuring.map(({ block }) => block))).toEqual(new Set([0, 1]))
      expect(Math.max(...measuring.map(({ fraction }) => fraction))).toBeLessThan(0.95)
      expect(seen.at(-1)!.fraction).toBeGreaterThan(0.99)
      const fractions = seen.map(({ fraction }) => fraction)
      expect(fractions).toEqual(fractions.toSorted((a, b) => a - b))
    })
  })

  test('is planned: the pass over the text and what it prunes cost memory and arithmetic', async () => {
    const size = { samples: 8, sequenceLength: 32, sparsity: 0.6 }
    const uniform = await plan(llama, size)
    const with_ = await plan(llama, { ...size, allocation })
    const matrices = uniform.prunedWeights
    const passes = (with_.flop.linear - uniform.flop.linear) / (2 * 8 * 32 * matrices)
    if (allocation === 'owl') {
      expect(passes).toBeCloseTo(1, 6)
      expect(with_.flop.gram).toBeGreaterThan(uniform.flop.gram)
    } else {
      // The whole text once; half of it dense, in three variants of block 0 through two blocks, of block 1 through one, to the heads.
      const heads = (2 * 6 * 24 * 32) / matrices
      expect(passes).toBeCloseTo(1 + (1 + 3 + 1.5 + heads) / 2, 6)
      expect(with_.flop.factor).toBeCloseTo(2 * uniform.flop.factor, 3)
      expect(with_.flop.solve).toBeCloseTo(4 * uniform.flop.solve, 3)
    }
    expect(with_.memory.peak).toBeGreaterThanOrEqual(uniform.memory.peak)
  })

  test('needs a text, and no pattern', async () => {
    const model = await loadModel(llama, { device: 'cpu', threads: 1 })
    const alone = prune(model, { method: 'magnitude', allocation })
    await expectError(
      alone,
      'INVALID_OPTION',
      new RegExp(`calibration: is needed for allocation "${allocation}"`),
    )
    const both = prune(model, { calibration, allocation, pattern: '2:4' })
    await expectError(both, 'INVALID_OPTION', /option allocation: cannot be combined with pattern/)
    await model.dispose()
  })
})

test('the shares of owl are those of scores that are computed one by one', async () => {
  const { targets, layers } = await pruned(llama, { allocation: 'owl', sparsity: 0.6 })
  const outliers = await withLoaded(llama, async (model) => {
    const engine = engineOf(model)
    const { device } = engine
    const windows = drawWindows(Int32Array.from(calibration.tokens), { ...calibration, seed: 0 })
    const [batch] = engine.embed([windows])
    const shares: number[] = []
    for (const [index, weights] of engine.blocks()) {
      const scores: number[] = []
      const run = engine.runBlock(index, weights, batch!)
      for (let group = await run.advance(); group; group = await run.advance()) {
        const input = await device.readFloat32(group.input)
        const columns = group.input.width
        const norms = new Float64Array(columns)
        input.forEach((value, i) => (norms[i % columns]! += value ** 2))
        for (const name of group.names) {
          const weight = await device.readFloat32(weights.linear(name).matrix)
          weight.forEach((value, i) => scores.push(Math.abs(value) * Math.sqrt(norms[i % columns]!)))
        }
      }
      const output = await run.finish()
      batch!.hidden.dispose()
      batch!.hidden = output
      const mean = scores.reduce((a, b) => a + b, 0) / scores.length
      shares.push(scores.filter((score) => score > 5 * mean).length / scores.length)
    }
    batch!.hidden.dispose()
    return shares
  })
  const weights = ['layers.0.', 'layers.1.'].map((part) =>
    layers.filter(({ name }) => name.includes(part)).reduce((sum, layer) => sum + weightsOf(layer), 0),
  )
  expect(outliers[0]).not.toBeCloseTo(outliers[1]!, 3)
  const expected = outlierShares(
    outliers.map((share, i) => ({ weights: weights[i]!, outliers: share })),
    0.6,
    0.08,
  )
  for (const [i, share] of expected.entries()) expect(targets![i]).toBeCloseTo(share, 9)
})

describe('a recipe', () => {
  const mlp = { layers: 'mlp', sparsity: 0.75 }

  test('gives layers their shares and patterns: by name, by block, the first that fits, else the default', async () => {
    const recipe: Recipe = {
      default: { sparsity: 0.25 },
      entries: [{ layers: 'q_proj$', blocks: '1-7', sparsity: 0.9 }, { blocks: 1, pattern: '2:4' }, mlp],
    }
    const { layers, sparsity, targets } = await pruned(llama, { allocation: recipe })
    const expected = (name: string) =>
      name.endsWith('1.self_attn.q_proj')
        ? 0.9
        : name.includes('layers.1')
          ? 0.5
          : name.includes('mlp')
            ? 0.75
            : 0.25
    for (const { name, target, sparsity } of layers) {
      expect([name, target]).toEqual([name, expected(name)])
      expect(sparsity).toBeCloseTo(expected(name), 2)
    }
    const all = layers.reduce((sum, layer) => sum + weightsOf(layer), 0)
    const zeros = layers.reduce((sum, layer) => sum + layer.target! * weightsOf(layer), 0)
    expect(sparsity.target).toBeCloseTo(zeros / all, 12)
    expect(targets![0]).toBeGreaterThan(0.25)
    expect(targets![1]).toBeGreaterThan(0.5)
  })

  test('with a sparsity, the layers that it leaves out make up for the others', async () => {
    const { sparsity, layers } = await pruned(llama, { sparsity: 0.6, allocation: { entries: [mlp] } })
    expect(sparsity.target).toBeCloseTo(0.6, 12)
    expect(new Set(layers.filter(({ name }) => !name.includes('mlp')).map(({ target }) => target)).size).toBe(
      1,
    )
    // With a default it must come to that by itself.
    const given = { allocation: { default: { sparsity: 0.6 }, entries: [{ blocks: 0, sparsity: 0.6 }] } }
    expect((await pruned(llama, { ...given, sparsity: 0.6 })).sparsity.target).toBeCloseTo(0.6, 12)
    await expectError(
      pruned(llama, { ...given, sparsity: 0.7 }),
      'INVALID_OPTION',
      /come to a sparsity of 0\.6000, but sparsity 0\.7 is asked for/,
    )
    await expectError(
      pruned(llama, { sparsity: 0.1, allocation: { entries: [mlp] } }),
      'INVALID_OPTION',
      /no entry is for would need a sparsity of -\d/,
    )
  })

  test('may be in a file, for the plan too', async () => {
    const file = join(await temporaryFolder(), 'recipe.json')
    await writeFile(file, JSON.stringify({ default: { pattern: '2:4' }, entries: [mlp] }))
    const { layers } = await pruned(llama, { allocation: file, method: 'magnitude' })
    expect(layers.map(({ target }) => target)).toContain(0.75)
    expect((await plan(llama, { allocation: file, samples: 2 })).flop.solve).toBeGreaterThan(0)
    await writeFile(file, '{"entries": [{"blocks": 0}]}')
    await expectError(
      pruned(llama, { allocation: file }),
      'INVALID_OPTION',
      /recipe\.json: field entries\.0: must have/,
    )
    await writeFile(file, 'sparsity: 0.5')
    await expectError(
      plan(llama, { allocation: file }),
      'INVALID_OPTION',
      /recipe\.json: a recipe must be JSON/,
    )
    await expectError(pruned(llama, { allocation: 'owll' }), 'FILE_NOT_FOUND', /owll does not exist: .*"owl"/)
  })

  test.each<[unknown, RegExp]>([
    [
      { entries: [mlp, { layers: '(', sparsity: 0.5 }] },
      /allocation\.entries\.1\.layers: must be a regular expression/,
    ],
    [
      { entries: [{ blocks: '5-2', sparsity: 0.5 }] },
      /allocation\.entries\.0\.blocks: must be the number of a block/,
    ],
    [{ entries: [{ blocks: -1, sparsity: 0.5 }] }, /allocation\.entries\.0\.blocks/],
    [{ entries: [{ sparsity: 0.5 }] }, /allocation\.entries\.0: must say for which layers/],
    [{ entries: [{ ...mlp, sparsity: 1 }] }, /allocation\.entries\.0\.sparsity/],
    [{ entries: [{ ...mlp, pattern: '2:4' }] }, /allocation\.entries\.0: must have one of sparsity/],
    [{ entries: [{ layers: 'mlp', pattern: '4:4' }] }, /allocation\.entries\.0\.pattern: must be n:m/],
    [
      { default: { pattern: '3:7' } },
      /default: model\.layers\.0\.\S+ has 24 columns, which 7 does not divide/,
    ],
    [{ entries: [{ blocks: 2, sparsity: 0.5 }] }, /entries\.0 is for no layer that is pruned/],
    [{ entries: [mlp] }, /no entry is for model\.layers\.0\.self_attn\.q_proj: add a default/],
    [{ defaults: { sparsity: 0.5 } }, /unknown option defaults/],
    [7, /option allocation/],
  ])('%j is refused', async (allocation, message) => {
    const options = { allocation } as PruneOptions
    await expectError(pruned(llama, options), 'INVALID_OPTION', message)
    await expectError(plan(llama, { ...options, samples: 2 } as object), 'INVALID_OPTION', message)
  })
})

describeWithShared('on models of every family', () => {
  const tokens = Int32Array.from({ length: 2000 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)

  test.each(unlikeModels.map((name, i) => [name, measured[i % 2]!] as const))(
    '%s, %s',
    async (name, allocation) => {
      const source = sharedPath('golden', 'models', name) ?? ''
      const text = { tokens, samples: 4, sequenceLength: 32 }
      const { sparsity } = await pruned(source, { allocation, sparsity: 0.6, calibration: text })
      expect(sparsity.target).toBeCloseTo(0.6, 9)
      expect(Math.abs(sparsity.achieved - 0.6)).toBeLessThan(0.03)
    },
  )
})

describeWithShared('on a trained model', () => {
  const source = sharedPath('models', 'TinyStories-656K') ?? ''
  const file = sharedPath('data', 'tinystories.calibration.txt') ?? ''
  const text = { file, samples: 16, sequenceLength: 256 }

  test.each([0.5, 0.7])(
    'sensitivity %d: the blocks do less damage in sum than pruned alike',
    async (sparsity) => {
      const { targets } = await pruned(source, { allocation: 'sensitivity', sparsity, calibration: text })
      await withLoaded(source, async (model) => {
        const engine = engineOf(model)
        const { windows } = await calibrationWindows(engine, { file }, { ...text, seed: 0 })
        const blocks = selectLayers(engine.architecture, { minBlock: 0 })
        const settings = { blockSize: 128 }
        const damage = async (shares: number[]) => {
          let sum = 0
          for (const [index, share] of shares.entries()) {
            const prefix = engine.architecture.block(index).prefix
            const names = blocks.map(
              (layers, i) => new Set(i === index ? layers.map(({ name }) => name.slice(prefix.length)) : []),
            )
            const options = { method: sparsegpt, settings, refit: false, step: () => undefined }
            sum += (await damageOfBlocks(engine, names, windows, [share], options)).get(index)![0]!
          }
          return sum
        }
        const shares = targets as number[]
        expect(await damage(shares)).toBeLessThanOrEqual(await damage(shares.map(() => sparsity)))
      })
    },
  )
})
