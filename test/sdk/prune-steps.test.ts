import { prune, type PruneOptions } from '../loose-options.js'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, perplexity, type Model } from '../../src/index.js'
import { readTensors } from '../safetensors-file.js'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(600), samples: 8, sequenceLength: 32 }

const folders: Record<string, string> = {}
beforeAll(async () => {
  for (const family of ['llama', 'gpt2'] as const) {
    folders[family] = await writeTinyModel(await temporaryFolder(), family)
  }
})

async function withModel<T>(folder: string, body: (model: Model) => Promise<T>): Promise<T> {
  const model = await loadModel(folder, { threads: 1, device: 'cpu' })
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

const newOut = async () => join(await temporaryFolder(), 'out')
const weightsOf = async (folder: string) => await readTensors(join(folder, 'model.safetensors'))
const zeros = (values: Float32Array) => values.reduce((sum, value) => sum + (value === 0 ? 1 : 0), 0)
const measured = (model: Model) => perplexity(model, { tokens: randomTokens(300, 5), sequenceLength: 32 })

describe('a model pruned in steps', () => {
  test.each([
    ['llama', 'mlp', 'self_attn'],
    ['gpt2', 'mlp', 'attn\\.'],
  ])(
    '%s: what was pruned in memory is written, and is what the model goes on with',
    async (family, one, two) => {
      const folder = folders[family]!
      const before = await weightsOf(folder)
      await withModel(folder, async (model) => {
        const first = await prune(model, { calibration, include: one })
        const inMemory = await measured(model)
        const out = await newOut()
        const second = await prune(model, { calibration, include: two, out })
        const written = await weightsOf(out)
        for (const { name } of [...first.layers, ...second.layers]) {
          const { values } = written.get(`${name}.weight`)!
          expect([name, zeros(values) / values.length]).toEqual([name, 0.5])
        }
        for (const [name, { values }] of written) {
          if ([...first.layers, ...second.layers].some((layer) => `${layer.name}.weight` === name)) continue
          expect(values).toEqual(before.get(name)!.values)
        }
        const after = await measured(model)
        expect(after.perplexity).not.toBe(inMemory.perplexity)
        expect(await withModel(out, measured)).toEqual(after)

        // The next step starts from what is written.
        const third = await newOut()
        await prune(model, { calibration, include: two, pattern: '2:4', out: third })
        const { values } = (await weightsOf(third)).get(`${first.layers[0]!.name}.weight`)!
        expect(values).toEqual(written.get(`${first.layers[0]!.name}.weight`)!.values)
      })
    },
  )

  test('a layer pruned again in the last step is written as that step left it', async () => {
    await withModel(folders['llama']!, async (model) => {
      await prune(model, { calibration, include: 'mlp', sparsity: 0.25 })
      const out = await newOut()
      const { layers } = await prune(model, { calibration, sparsity: 0.75, out })
      const written = await weightsOf(out)
      for (const { name } of layers) {
        const { values } = written.get(`${name}.weight`)!
        expect(zeros(values) / values.length).toBe(0.75)
      }
    })
  })

  test('a step that fails leaves what was pruned before', async () => {
    await withModel(folders['llama']!, async (model) => {
      await prune(model, { calibration, include: 'mlp' })
      const before = await measured(model)
      const out = await newOut()
      const controller = new AbortController()
      const failing = prune(model, {
        calibration,
        include: 'self_attn',
        out,
        signal: controller.signal,
        onProgress: () => controller.abort(),
      })
      await expect(failing).rejects.toMatchObject({ code: 'ABORTED' })
      expect(await measured(model)).toEqual(before)
      await prune(model, { calibration, include: 'self_attn', out })
      const { values } = (await weightsOf(out)).get('model.layers.1.mlp.up_proj.weight')!
      expect(zeros(values) / values.length).toBe(0.5)
    })
  })
})

describe('zeros of the model stay zeros', () => {
  const byStep = async (first: PruneOptions, second: PruneOptions) => {
    const [sparse, out] = [await newOut(), await newOut()]
    await withModel(folders['llama']!, (model) => prune(model, { calibration, ...first, out: sparse }))
    const report = await withModel(sparse, (model) => prune(model, { calibration, ...second, out }))
    const [before, after] = [await weightsOf(sparse), await weightsOf(out)]
    let refilled = 0
    let changed = 0
    for (const { name } of report.layers) {
      const [old, values] = [before, after].map((tensors) => tensors.get(`${name}.weight`)!.values)
      values!.forEach((value, i) => {
        if (old![i] === 0 && value !== 0) refilled++
        if (old![i] !== value) changed++
      })
    }
    return { report, refilled, changed }
  }

  test('--bits with sparsity 0 on a 2:4 model', async () => {
    const { report, refilled, changed } = await byStep({ pattern: '2:4' }, { bits: 4, sparsity: 0 })
    expect(refilled).toBe(0)
    expect(changed).toBeGreaterThan(0)
    expect(report.sparsity.achieved).toBeGreaterThanOrEqual(0.5)
  })

  test.each(['sparsegpt', 'wanda', 'magnitude'] as const)(
    '2:4 on a 70 %% sparse model by %s',
    async (method) => {
      const { report, refilled } = await byStep({ sparsity: 0.7 }, { method, pattern: '2:4' })
      expect(refilled).toBe(0)
      expect(report.sparsity.achieved).toBeGreaterThan(0.7)
    },
  )

  test.each(['sparsegpt', 'wanda', 'magnitude'] as const)(
    'they count towards the share asked for by %s',
    async (method) => {
      const { report, refilled } = await byStep({ sparsity: 0.4 }, { method, sparsity: 0.5 })
      expect(refilled).toBe(0)
      expect(report.sparsity.achieved).toBeCloseTo(0.5, 1)
      expect(report.sparsity.achieved).toBeLessThan(0.56)
    },
  )
})

test.each([/mlp/g, /mlp/y, /MLP/giy, /mlp/])(
  'include and exclude by %s take every layer that matches',
  async (include) => {
    const report = await withModel(folders['llama']!, (model) => prune(model, { calibration, include }))
    expect(report.layers.map(({ name }) => name.split('.').at(-1))).toEqual(
      Array.from({ length: 2 }, () => ['gate_proj', 'up_proj', 'down_proj']).flat(),
    )
    const rest = await withModel(folders['llama']!, (model) =>
      prune(model, { calibration, exclude: include }),
    )
    expect(rest.layers).toHaveLength(8)
    expect(include.lastIndex).toBe(0)
  },
)
