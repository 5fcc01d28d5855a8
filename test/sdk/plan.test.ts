import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, plan, prune } from '../../src/index.js'
import { readSafetensorsHeader } from '../../src/files/safetensors.js'
import { goldenModels } from '../models/golden-models.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { writeTinyModel } from '../tiny-model.js'

let folder: string
beforeAll(async () => {
  folder = await temporaryFolder()
  await writeFile(
    join(folder, 'config.json'),
    JSON.stringify({
      model_type: 'opt',
      vocab_size: 1000,
      hidden_size: 256,
      ffn_dim: 1024,
      num_hidden_layers: 4,
      num_attention_heads: 4,
      torch_dtype: 'float16',
    }),
  )
})

const size = { samples: 16, sequenceLength: 128 }
const tokens = 16 * 128
const [h, f] = [256, 1024]

describe('arithmetic and disk of a small OPT, from its config alone', () => {
  test('by block: two passes, but one after the last block', async () => {
    const { flop, disk, blocks, prunedWeights } = await plan(folder, size)
    const matrices = 4 * h * h + 2 * h * f
    expect([blocks, prunedWeights]).toEqual([4, 4 * matrices])
    // The last group's outputs are not needed in the passes that collect.
    const collected = matrices - h * f
    expect(flop.linear).toBe(2 * tokens * (4 * collected + 3 * matrices))
    // Each query sees itself and what is before it.
    expect(flop.attention).toBe(7 * 4 * tokens * 64.5 * h)
    // q, k and v share a matrix.
    // Beside the Gram matrices the squares of what the outputs' energy is a sum of.
    expect(flop.gram).toBe(4 * tokens * (3 * h * (h + 1) + f * (f + 1)) + 2 * prunedWeights)
    expect(flop.factor).toBeCloseTo((4 * (3 * h ** 3 + f ** 3)) / 3, -2)
    // The solver, and the triangular product of that energy.
    expect(flop.solve).toBe(4 * (4 * h * h * (2 * h + 1) + f * h * (2 * h + 1) + h * f * (2 * f + 1)))
    expect(flop.total).toBe(flop.linear + flop.attention + flop.gram + flop.factor + flop.solve)
    const biases = 4 * h + f + h + 4 * h
    const other = 1000 * h + 2050 * h + 2 * h
    expect(disk.written).toBe(2 * (4 * (matrices + biases) + other))
    expect(disk.offloadFile).toBe(0)
  })

  test('by layer: one pass, which ends at the last layer', async () => {
    const matrices = 4 * h * h + 2 * h * f
    const { flop } = await plan(folder, { ...size, sequential: 'layer' })
    expect(flop.linear).toBe(2 * tokens * (4 * matrices - h * f))
  })

  test('of four ranks each passes a quarter of the windows, solves a quarter of the rows and factors all', async () => {
    const options = { ...size, pattern: '2:4' } as const
    const [alone, one] = [await plan(folder, options), await plan(folder, { ...options, ranks: 4 })]
    for (const kind of ['linear', 'attention', 'gram', 'solve'] as const)
      expect(one.flop[kind]).toBeCloseTo(alone.flop[kind] / 4, -2)
    expect(one.flop.factor).toBe(alone.flop.factor)
    // A triangle comes in quarters of three others, to be summed and once more when it is; rows come from their ranks.
    const triangles = (3 * h * (h + 1) + f * (f + 1)) / 2
    const matrices = 4 * h * h + 2 * h * f
    expect(one.received).toBeCloseTo(4 * 4 * ((2 * 3 * triangles) / 4 + (3 / 4) * matrices), -3)
    expect(one.memory.parts.hiddenStates).toBe(alone.memory.parts.hiddenStates / 4)
    const { seconds, rates, efficiency, ranks } = one
    expect(ranks).toBe(4)
    expect(seconds.gram).toBeCloseTo(one.flop.gram / rates.gram, 10)
    expect(seconds.communicate).toBeCloseTo(one.received! / 1.25e9, 10)
    expect(efficiency).toBeGreaterThan(0.2)
    expect(efficiency).toBeLessThan(1)
    const ofBandwidth = (bandwidth: string) => plan(folder, { ...options, ranks: 2, bandwidth })
    await expectError(
      ofBandwidth('fast'),
      'INVALID_OPTION',
      /bandwidth: must be a bandwidth such as '100Gbps'/,
    )
  })

  test('a dense target takes another pass through the dense block, and a product for each Gram matrix', async () => {
    const matrices = 4 * h * h + 2 * h * f
    const squares = 3 * h * h + f * f
    const cubes = 4 * h * h * h + f * h * h + h * f * f
    const own = await plan(folder, size)
    const blockwise = await plan(folder, { ...size, target: 'dense' })
    // After the last block the dense model's outputs are of no use; W S is a product of each matrix with one of its columns.
    const collected = 4 * matrices - h * f
    const across = 4 * 2 * tokens * squares
    expect(blockwise.flop.linear - own.flop.linear).toBe(2 * tokens * collected + 2 * 4 * cubes + across)
    // Besides, the squares of a few products.
    expect((blockwise.flop.gram - own.flop.gram) / own.flop.gram).toBeLessThan(0.01)
    const layerwise = await plan(folder, { ...size, sequential: 'layer', target: 'dense' })
    const alone = await plan(folder, { ...size, sequential: 'layer' })
    expect(layerwise.flop.linear).toBe(2 * alone.flop.linear + 2 * 4 * cubes + across)
    expect(blockwise.memory.parts.hiddenStates).toBe(2 * own.memory.parts.hiddenStates)
    expect(layerwise.memory.peak).toBeGreaterThan(alone.memory.peak)
  })

  test('fitting kept weights costs its iterations, at most', async () => {
    const { flop } = await plan(folder, { ...size, refit: true })
    const once = (await plan(folder, size)).flop
    expect(flop.solve / once.solve).toBeGreaterThan(60)
    expect(flop.solve).toBeLessThan(65 * once.solve)
    // The problem in unit columns has a factor of its own.
    expect(flop.factor).toBeCloseTo(2 * once.factor, -2)
    expect(flop.gram / once.gram).toBeCloseTo(1, 1)
  })

  test('magnitude needs no activations', async () => {
    const { flop, memory } = await plan(folder, { method: 'magnitude' })
    expect(flop.total).toBe(0)
    expect(memory.parts).toMatchObject({ hiddenStates: 0, gram: 0 })
  })

  test('layers that are left out cost no Gram matrix', async () => {
    const { flop, prunedWeights } = await plan(folder, { ...size, include: 'fc1', maxBlock: 2 })
    expect(prunedWeights).toBe(2 * h * f)
    expect(flop.gram).toBe(2 * tokens * h * (h + 1) + 2 * prunedWeights)
  })
})

describe('memory', () => {
  test('its parts make the peak; more windows, a wider dtype and larger Grams take more', async () => {
    const base = (await plan(folder, size)).memory
    const sum = Object.values(base.parts).reduce((a, b) => a + b, 0)
    expect(sum).toBe(base.peak)
    expect(base.parts.hiddenStates).toBe(tokens * h * 4)
    const many = (await plan(folder, { ...size, samples: 64 })).memory
    expect(many.parts.hiddenStates).toBe(4 * base.parts.hiddenStates)
    expect((await plan(folder, { ...size, samples: 64, dtype: 'bfloat16' })).memory.peak).toBeLessThan(
      many.peak,
    )
    const away = await plan(folder, { ...size, samples: 64, offload: true })
    expect(away.memory.peak).toBeLessThan(many.peak)
    expect(away.disk.offloadFile).toBe(64 * 128 * h * 4)
    // Read and written again in each of seven passes, and written at first.
    expect(away.disk.offloaded).toBeGreaterThan(12 * away.disk.offloadFile)
  })

  test('of a GPU holds no pages of files and no process', async () => {
    const { parts } = (await plan(folder, { ...size, device: 'cuda' })).memory
    expect(parts.process).toBe(0)
    expect(parts.weights).toBeGreaterThan(0)
  })

  test('of a GPU holds two blocks: one is loaded while the one before is pruned', async () => {
    const weights = async (maxBlock: number) =>
      (await plan(folder, { ...size, device: 'cuda', maxBlock })).memory.parts.weights
    const one = await weights(1)
    expect([await weights(2), await weights(4)]).toEqual([2 * one, 2 * one])
  })
})

describe('of blocks that are alike', () => {
  const config = async (entries: object) => {
    const path = await temporaryFolder()
    await writeFile(join(path, 'config.json'), JSON.stringify(entries))
    return path
  }
  const gemma = (blocks: number) =>
    config({
      ...{ model_type: 'gemma2', vocab_size: 100, hidden_size: 64, intermediate_size: 128, head_dim: 16 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2, sliding_window: 16, num_hidden_layers: blocks },
    })

  test.each(['cpu', 'cuda'] as const)('work and traffic are those of each, on %s', async (device) => {
    // Every other block has a window; the rest of the first four is passed, then pruned, or left as it is.
    const figures = async (blocks: number, offload: boolean) => {
      const options = { ...size, device, offload, minBlock: 2, exclude: 'layers.3' }
      const { flop, disk } = await plan(await gemma(blocks), options)
      return [flop.linear, flop.attention, flop.gram, flop.solve, disk.read, disk.written, disk.offloaded]
    }
    for (const offload of [false, true]) {
      const [six, eight, twenty] = await Promise.all([6, 8, 20].map((blocks) => figures(blocks, offload)))
      expect(twenty).toEqual(six!.map((value, i) => value + 7 * (eight![i]! - value)))
      expect(eight).not.toEqual(six)
    }
  })

  test('512 with 64 experts each are planned in seconds', async () => {
    const path = await config({
      ...{ model_type: 'mixtral', vocab_size: 100, hidden_size: 64, intermediate_size: 128 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2 },
      ...{ num_hidden_layers: 512, num_local_experts: 64 },
    })
    // The processor's, since the tests run beside each other.
    const start = process.cpuUsage()
    const { prunedWeights } = await plan(path, { samples: 16, sequenceLength: 1024 })
    expect(prunedWeights).toBe(512 * (3 * 64 * 64 * 64 * 2 + 3 * 64 * 64))
    expect(process.cpuUsage(start).user / 1e6).toBeLessThan(15)
  })

  test('parts of a fused projection stay no longer than their batch', async () => {
    const path = await config({
      ...{ model_type: 'phi3', vocab_size: 100, hidden_size: 64, intermediate_size: 128 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2, num_hidden_layers: 2 },
    })
    const activations = async (samples: number) =>
      (await plan(path, { samples, sequenceLength: 2048 })).memory.parts.activations
    expect(await activations(16)).toBe(await activations(4))
  })
})

describe('bad input', () => {
  test('options are checked as those of prune', async () => {
    await expectError(
      plan(folder, { sparsity: 0.5, pattern: '2:4' } as never),
      'INVALID_OPTION',
      /plan: option pattern/,
    )
    await expectError(plan(folder, { sequenceLength: 4096 }), 'INVALID_OPTION', /context of 2048/)
    await expectError(plan(folder, { minBlock: 4 }), 'INVALID_OPTION', /leave none of the model's 4 blocks/)
  })
  test('a folder without config.json', async () => {
    await expectError(plan(await temporaryFolder()), 'FILE_NOT_FOUND', /has no config\.json/)
  })
})

test('what was planned is what a run reads, writes and prunes', async () => {
  const tiny = await writeTinyModel(await temporaryFolder())
  const planned = await plan(tiny, { samples: 4, sequenceLength: 32, pattern: '2:4' })
  const model = await loadModel(tiny, { threads: 1 })
  const out = join(await temporaryFolder(), 'out')
  const calibration = {
    tokens: Int32Array.from({ length: 200 }, (_, i) => (i * 7) % 32),
    samples: 4,
    sequenceLength: 32,
  }
  const report = await prune(model, { calibration, pattern: '2:4', out })
  await model.dispose()
  expect(report.layers.reduce((sum, { rows, columns }) => sum + rows * columns, 0)).toBe(
    planned.prunedWeights,
  )
  const { tensors } = await readSafetensorsHeader(join(out, 'model.safetensors'))
  expect(tensors.reduce((sum, { bytes }) => sum + bytes, 0)).toBe(planned.disk.written)
  expect((await stat(join(out, 'model.safetensors'))).size).toBeGreaterThan(planned.disk.written)
})

describeWithShared('the golden models of every family', () => {
  test.each(goldenModels)('%s: the plan has the weights that the files have', async (name) => {
    const source = sharedPath('golden', 'models', name) ?? ''
    const copy = await temporaryFolder()
    await writeFile(join(copy, 'config.json'), await readFile(join(source, 'config.json')))
    for (const sequential of ['block', 'layer'] as const) {
      const { disk, flop, prunedWeights } = await plan(copy, { samples: 8, sequenceLength: 32, sequential })
      const { tensors } = await readSafetensorsHeader(join(source, 'model.safetensors'))
      const stored = tensors.reduce((sum, { bytes }) => sum + bytes, 0)
      expect([name, Math.abs(disk.written / stored - 1) < 0.01]).toEqual([name, true])
      expect(prunedWeights).toBeGreaterThan(0)
      expect(flop.solve).toBeGreaterThan(0)
    }
  })
})
