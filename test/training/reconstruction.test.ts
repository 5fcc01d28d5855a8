import { prune, type PruneOptions } from '../loose-options.js'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, perplexity, plan, type PruneReport } from '../../src/index.js'
import { unlikeModels } from '../models/golden-models.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(900), samples: 10, sequenceLength: 32 }

interface Result {
  report: PruneReport
  tensors: Awaited<ReturnType<typeof readTensors>>
}

async function pruned(
  folder: string,
  options: PruneOptions,
  dtype: 'float32' | 'bfloat16' = 'float32',
): Promise<Result> {
  const out = typeof options.out === 'string' ? options.out : join(await temporaryFolder(), 'out')
  const model = await loadModel(folder, { device: 'cpu', threads: 1, dtype })
  try {
    const report = await prune(model, { calibration, ...options, out })
    return { report, tensors: await readTensors(join(out, 'model.safetensors')) }
  } finally {
    await model.dispose()
  }
}

const zeros = (values: Float32Array) => values.map((value) => (value === 0 ? 1 : 0))

describe('reconstruction', () => {
  let folder: string
  beforeAll(async () => {
    folder = await writeTinyModel(await temporaryFolder())
  })

  test('keeps the masks, changes kept weights and norms, and never makes held-out errors worse', async () => {
    const source = await readTensors(join(folder, 'model.safetensors'))
    const before = await pruned(folder, { pattern: '2:4' })
    const { report, tensors } = await pruned(folder, {
      pattern: '2:4',
      reconstruct: { epochs: 6, learningRate: 2e-2 },
    })
    for (const { name, sparsity, reconstruction } of report.layers) {
      expect(sparsity).toBe(0.5)
      const { heldOut, steps, bestEpoch } = reconstruction!
      expect(heldOut.after).toBeLessThanOrEqual(heldOut.before)
      // Nine windows to train on, one a step.
      expect([steps, bestEpoch <= 6]).toEqual([54, true])
      expect([name, tensors.get(`${name}.weight`)!.values.some((v) => Number.isNaN(v))]).toEqual([
        name,
        false,
      ])
    }
    // What was pruned first is pruned alike.
    const first = 'model.layers.0.self_attn.q_proj.weight'
    expect(zeros(tensors.get(first)!.values)).toEqual(zeros(before.tensors.get(first)!.values))
    expect(tensors.get(first)!.values).not.toEqual(before.tensors.get(first)!.values)
    const norm = 'model.layers.0.input_layernorm.weight'
    expect(tensors.get(norm)!.values).not.toEqual(source.get(norm)!.values)
    for (const name of ['model.embed_tokens.weight', 'model.norm.weight'])
      expect(tensors.get(name)!.values).toEqual(source.get(name)!.values)
    expect(report.layers[0]!.reconstruction!.heldOut.after).toBeLessThan(
      0.9 * report.layers[0]!.reconstruction!.heldOut.before,
    )
  })

  test('biases are fitted, and what is in memory is what is written', async () => {
    const gpt2 = await writeTinyModel(await temporaryFolder(), 'gpt2')
    const source = await readTensors(join(gpt2, 'model.safetensors'))
    const out = join(await temporaryFolder(), 'out')
    const windows = { tokens: randomTokens(400, 3), sequenceLength: 32 }
    const inMemory = await loadModel(gpt2, { device: 'cpu', threads: 1 })
    const written = await loadModel(gpt2, { device: 'cpu', threads: 1 })
    await prune(inMemory, { calibration, sparsity: 0.5, reconstruct: 2 })
    await prune(written, { calibration, sparsity: 0.5, reconstruct: 2, out })
    expect(await perplexity(inMemory, windows)).toEqual(await perplexity(written, windows))
    const again = await loadModel(out, { device: 'cpu', threads: 1 })
    expect(await perplexity(again, windows)).toEqual(await perplexity(written, windows))
    for (const model of [inMemory, written, again]) await model.dispose()
    const tensors = await readTensors(join(out, 'model.safetensors'))
    for (const name of ['h.0.attn.c_attn.bias', 'h.1.mlp.c_proj.bias', 'h.0.ln_1.bias'])
      expect(tensors.get(name)!.values).not.toEqual(source.get(name)!.values)
  })

  test.each(['block', 'layer'] as const)(
    'activations in a file change nothing, by %s',
    async (sequential) => {
      const options = { sparsity: 0.5, reconstruct: 2, sequential }
      const kept = await pruned(folder, options)
      const offloaded = await pruned(folder, { ...options, offload: await temporaryFolder() })
      expect(offloaded.tensors).toEqual(kept.tensors)
    },
  )

  test('a job that was stopped is resumed to the same files', async () => {
    const options = { pattern: '2:4', reconstruct: { epochs: 2, batch: 3 }, target: 'dense' } as const
    const whole = join(await temporaryFolder(), 'whole')
    await pruned(folder, { ...options, out: whole })
    const out = join(await temporaryFolder(), 'out')
    const controller = new AbortController()
    const onProgress: PruneOptions['onProgress'] = ({ block, phase }) => {
      if (block === 1 && phase === 'reconstruct') controller.abort()
    }
    await expectError(
      pruned(folder, { ...options, out, onProgress, signal: controller.signal }),
      'ABORTED',
      /--resume/,
    )
    const { report } = await pruned(folder, { ...options, out, resume: true })
    expect(report.layers.every(({ reconstruction }) => reconstruction?.steps === 6)).toBe(true)
    for (const name of ['model.safetensors', 'config.json'])
      expect(await readFile(join(out, name))).toEqual(await readFile(join(whole, name)))
  })

  test('a window of two blocks looks behind the next block, but for the last', async () => {
    const seen: number[] = []
    const onProgress: PruneOptions['onProgress'] = ({ fraction }) => void seen.push(fraction)
    const options = { pattern: '2:4', reconstruct: { epochs: 3, learningRate: 2e-2, window: 2 } }
    const [one, two] = [
      await pruned(folder, { ...options, reconstruct: { ...options.reconstruct, window: 1 } }),
      await pruned(folder, { ...options, onProgress }),
    ]
    const heldOut = ({ report }: Result, block: number) =>
      report.layers.find(({ name }) => name.startsWith(`model.layers.${block}.`))!.reconstruction!.heldOut
    expect(heldOut(two, 0).after).toBeLessThan(0.97 * heldOut(two, 0).before)
    expect(heldOut(two, 0).before).not.toBeCloseTo(heldOut(one, 0).before, 4)
    expect(heldOut(two, 1).after).toBeLessThanOrEqual(heldOut(two, 1).before)
    expect(seen.at(-1)).toBeGreaterThan(0.99)
    const offloaded = await pruned(folder, { ...options, offload: await temporaryFolder() })
    expect(offloaded.tensors).toEqual(two.tensors)
  })

  test('is in the plan', async () => {
    const job = { samples: 10, sequenceLength: 32, pattern: '2:4', dtype: 'float32' } as const
    const [without, one, two] = await Promise.all([
      plan(folder, job),
      plan(folder, { ...job, reconstruct: 1 }),
      plan(folder, { ...job, reconstruct: 2 }),
    ])
    expect(one.flop.linear).toBeGreaterThan(without.flop.linear)
    // An epoch is three forward passes of the training windows, and one of those held out.
    const epoch = two.flop.linear - one.flop.linear
    expect(epoch / (without.flop.linear / 2)).toBeGreaterThan(2.5)
    expect(one.memory.parts.hiddenStates).toBe(2 * without.memory.parts.hiddenStates)
    expect(one.memory.peak).toBeGreaterThan(without.memory.peak)
    const further = await plan(folder, { ...job, reconstruct: { epochs: 1, window: 2 } })
    expect(further.flop.linear).toBeGreaterThan(one.flop.linear)
    expect(further.memory.peak).toBeGreaterThan(one.memory.peak)
  })

  test.each([
    [{ reconstruct: 0 }, /option reconstruct/],
    [{ reconstruct: { epochs: 1, rate: 2 } }, /unknown option rate/],
    [{ reconstruct: { learningRate: 2 } }, /option reconstruct/],
    [{ reconstruct: { window: 3 } }, /option reconstruct/],
    [{ reconstruct: true, method: 'magnitude', calibration: undefined }, /option calibration/],
  ])('refuses %j', async (options, message) => {
    await expectError(pruned(folder, options as PruneOptions), 'INVALID_OPTION', message)
  })
})

describeWithShared('reconstruction of every family', () => {
  const tokens = Int32Array.from({ length: 900 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)

  const cases = unlikeModels.map((name, i) => [name, i % 2 === 0 ? 'sparsegpt' : 'magnitude'] as const)

  test.each(cases)('%s, after %s', async (name, method) => {
    const source = sharedPath('golden', 'models', name) ?? ''
    const options = { method, pattern: '2:4', calibration: { ...calibration, tokens }, reconstruct: 2 }
    const dtype = method === 'magnitude' ? 'bfloat16' : 'float32'
    const { report } = await pruned(source, options, dtype)
    for (const { sparsity, reconstruction } of report.layers) {
      expect(sparsity).toBeGreaterThanOrEqual(0.5)
      expect(reconstruction!.heldOut.after).toBeLessThanOrEqual(reconstruction!.heldOut.before)
    }
  })
})

describeWithShared('reconstruction of a trained model', () => {
  test('brings the perplexity nearer to that of the dense model', async () => {
    const source = sharedPath('models', 'TinyStories-656K') ?? ''
    const text = (name: string) => ({ file: sharedPath('data', name) ?? '', sequenceLength: 256 })
    const measured = async (options: Partial<PruneOptions>) => {
      const model = await loadModel(source, { device: 'cpu', dtype: 'bfloat16' })
      const options_ = {
        pattern: '2:4',
        calibration: { ...text('tinystories.calibration.txt'), samples: 24 },
        ...options,
      }
      await prune(model, options_)
      const result = await perplexity(model, { ...text('tinystories.eval.txt'), windows: 40 })
      await model.dispose()
      return result.perplexity
    }
    const before = await measured({})
    const reconstruct = { epochs: 2, learningRate: 2e-2 }
    expect(await measured({ reconstruct })).toBeLessThan(0.9 * before)
  })
})
