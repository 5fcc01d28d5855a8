import { prune, type PruneOptions } from '../loose-options.js'
import { readFile, readdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, perplexity, type Model, type PruneProgress } from '../../src/index.js'
import { inspect } from '../../src/sdk/inspect.js'
import { writeSafetensors } from '../files/files.js'
import { readTensors } from '../safetensors-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(600), samples: 8, sequenceLength: 32 }

let llama: string
let gpt2: string
beforeAll(async () => {
  llama = await writeTinyModel(await temporaryFolder(), 'llama')
  gpt2 = await writeTinyModel(await temporaryFolder(), 'gpt2')
})

async function withModel<T>(folder: string, body: (model: Model) => Promise<T>, threads = 1): Promise<T> {
  const model = await loadModel(folder, { threads })
  try {
    return await body(model)
  } finally {
    await model.dispose()
  }
}

/** Prunes into a new folder. */
async function pruned(folder: string, options: PruneOptions, threads?: number) {
  const out = join(await temporaryFolder(), 'out')
  const report = await withModel(folder, (model) => prune(model, { calibration, out, ...options }), threads)
  const tensors = await readTensors(join(out, 'model.safetensors'))
  return { out, report, weight: (name: string) => tensors.get(`${name}.weight`)!.values, tensors }
}

const zeros = (values: Float32Array) => values.reduce((sum, value) => sum + (value === 0 ? 1 : 0), 0)

/** What lies in the folder of a pruned model. */
const files = [
  ...['README.md', 'config.json', 'model.safetensors'],
  ...['sparsegpt-report.html', 'sparsegpt-report.json', 'tokenizer.json'],
]

describe('what is written', () => {
  test('every linear of every block is pruned to the share asked for; nothing else changes', async () => {
    const { out, report, tensors } = await pruned(llama, { sparsity: 0.5 })
    const before = await readTensors(join(llama, 'model.safetensors'))
    expect(report.layers).toHaveLength(14)
    for (const [name, { values, shape }] of tensors) {
      const layer = report.layers.find((candidate) => `${candidate.name}.weight` === name)
      if (!layer) {
        expect(values).toEqual(before.get(name)!.values)
      } else {
        expect([layer.rows, layer.columns]).toEqual(shape)
        expect(zeros(values)).toBe(values.length / 2)
        expect(layer.sparsity).toBe(0.5)
        expect(layer.loss).toBeGreaterThan(0)
      }
    }
    expect(report.sparsity).toEqual({ target: 0.5, achieved: 0.5 })
    expect((await readdir(out)).sort()).toEqual(files)
  })

  test('with profile the report says where the time went', async () => {
    const { report } = await pruned(llama, { profile: true })
    const { seconds, phases } = report
    expect(Object.keys(phases!)).toEqual(
      expect.arrayContaining([
        'calibration',
        'forward',
        'statistics',
        'factor',
        'solve',
        'convert',
        'communicate',
        'write',
        'other',
      ]),
    )
    const { gradient, communicate, ...rest } = phases!
    expect([gradient, communicate]).toEqual([0, 0])
    const all = Object.values<number>(rest)
    for (const spent of all) expect(spent).toBeGreaterThan(0)
    expect(all.reduce((a, b) => a + b, 0)).toBeCloseTo(seconds, 3)
    // The layers' own clocks run from the first of these operations to the last.
    const solving = report.layers.reduce((sum, layer) => sum + layer.seconds, 0)
    expect(solving).toBeGreaterThan(phases!.factor)
    expect(solving).toBeLessThan(report.seconds)
    expect((await pruned(llama, {})).report).not.toHaveProperty('phases')
  })

  test.each(['sparsegpt', 'wanda', 'magnitude'] as const)(
    '2:4 by %s holds in every matrix',
    async (method) => {
      const { out, report } = await pruned(llama, { method, pattern: '2:4' })
      const { tensors } = await inspect(out)
      for (const { name } of report.layers) {
        expect(tensors.find((tensor) => tensor.name === `${name}.weight`)).toMatchObject({
          sparsity: 0.5,
          patterns: ['2:4', '4:8'],
        })
      }
    },
  )

  test("GPT-2's transposed matrices are pruned along their inputs", async () => {
    const { out, tensors } = await pruned(gpt2, { pattern: '2:4' })
    const { values, shape } = tensors.get('h.0.mlp.c_fc.weight')!
    const [inputs = 0, outputs = 0] = shape // stored [in, out]
    for (let o = 0; o < outputs; o++) {
      for (let i = 0; i < inputs; i += 4) {
        const group = [0, 1, 2, 3].map((g) => values[(i + g) * outputs + o])
        expect(group.filter((value) => value === 0)).toHaveLength(2)
      }
    }
    expect((await inspect(out)).tensors.find(({ name }) => name === 'h.0.mlp.c_fc.weight')!.patterns).toEqual(
      ['2:4', '4:8'],
    )
  })

  test('in memory the model becomes what the folder would hold', async () => {
    const tokens = randomTokens(300, 5)
    const { out } = await pruned(llama, { sparsity: 0.6 })
    const written = await withModel(out, (model) => perplexity(model, { tokens, sequenceLength: 32 }))
    await withModel(llama, async (model) => {
      const dense = await perplexity(model, { tokens, sequenceLength: 32 })
      const report = await prune(model, { calibration, sparsity: 0.6 })
      expect(report.out).toBeNull()
      const sparse = await perplexity(model, { tokens, sequenceLength: 32 })
      expect(sparse).toEqual(written)
      expect(sparse.perplexity).not.toBe(dense.perplexity)
    })
  })

  test('the model continues as the pruned one', async () => {
    const tokens = randomTokens(300, 5)
    const out = join(await temporaryFolder(), 'out')
    const after = await withModel(llama, async (model) => {
      await prune(model, { calibration, out })
      expect(model.folder).toBe(out)
      return perplexity(model, { tokens, sequenceLength: 32 })
    })
    expect(after).toEqual(await withModel(out, (model) => perplexity(model, { tokens, sequenceLength: 32 })))
  })
})

describe('how it is calibrated', () => {
  test('the same on any number of threads, and from tokens, text and JSON lines alike', async () => {
    const folder = await temporaryFolder()
    const text = join(folder, 'text.txt')
    const lines = join(folder, 'text.jsonl')
    await writeFile(text, asText(calibration.tokens))
    await writeFile(lines, JSON.stringify({ words: asText(calibration.tokens) }))
    const { samples, sequenceLength } = calibration
    const runs = [
      await pruned(llama, {}),
      await pruned(llama, {}, 2),
      await pruned(llama, { calibration: { file: text, samples, sequenceLength } }),
      await pruned(llama, { calibration: { file: lines, textField: 'words', samples, sequenceLength } }),
    ]
    for (const { tensors } of runs.slice(1)) expect(tensors).toEqual(runs[0]!.tensors)
    const other = await pruned(llama, { calibration: { ...calibration, seed: 1 } })
    expect(other.tensors).not.toEqual(runs[0]!.tensors)
  })

  test('an encoded text can be saved and given instead of the text', async () => {
    const folder = await temporaryFolder()
    const text = join(folder, 'text.txt')
    const saved = join(folder, 'tokens.safetensors')
    await writeFile(text, asText(calibration.tokens))
    const { samples, sequenceLength } = calibration
    const first = await pruned(llama, {
      calibration: { file: text, samples, sequenceLength, saveTokens: saved },
    })
    const second = await pruned(llama, { calibration: { file: saved, samples, sequenceLength } })
    expect(second.tensors).toEqual(first.tensors)
  })

  test('block: a layer sees the dense block; layer: it sees the layers pruned before it', async () => {
    const block = await pruned(llama, { sparsity: 0.6, sequential: 'block' })
    const layer = await pruned(llama, { sparsity: 0.6, sequential: 'layer' })
    const same = (name: string) => expect(layer.weight(name)).toEqual(block.weight(name))
    for (const name of ['q', 'k', 'v']) same(`model.layers.0.self_attn.${name}_proj`)
    for (const name of ['self_attn.o_proj', 'mlp.down_proj']) {
      expect(layer.weight(`model.layers.0.${name}`)).not.toEqual(block.weight(`model.layers.0.${name}`))
    }

    // With only the last layer left to prune, its input is the same either way.
    const only = { include: 'layers.0.mlp.down_proj' }
    const single = await pruned(llama, { ...only, sequential: 'layer' })
    expect(single.tensors).toEqual((await pruned(llama, only)).tensors)
  })

  test('later blocks see what the earlier ones have become', async () => {
    const both = await pruned(llama, { sparsity: 0.7 })
    const second = await pruned(llama, { sparsity: 0.7, minBlock: 1 })
    const first = await pruned(llama, { sparsity: 0.7, maxBlock: 1 })
    const name = (block: number) => `model.layers.${block}.self_attn.q_proj`
    expect(first.weight(name(0))).toEqual(both.weight(name(0)))
    expect(second.weight(name(1))).not.toEqual(both.weight(name(1)))
    // Pruned in two runs, the second from the first one's result, the model is the same.
    const continued = await pruned(first.out, { sparsity: 0.7, minBlock: 1 })
    expect(continued.tensors).toEqual(both.tensors)
  })
})

describe('what is pruned', () => {
  test('include, exclude, minBlock and maxBlock choose layers', async () => {
    const names = async (options: PruneOptions) =>
      (await pruned(llama, options)).report.layers.map(({ name }) => name)
    expect(await names({ include: /mlp/, exclude: 'gate', maxBlock: 1 })).toEqual([
      'model.layers.0.mlp.up_proj',
      'model.layers.0.mlp.down_proj',
    ])
    expect(await names({ include: 'k_proj', minBlock: 1, method: 'magnitude' })).toEqual([
      'model.layers.1.self_attn.k_proj',
    ])
  })

  test.each(['llama', 'gpt2'] as const)('a mask file decides (%s)', async (family) => {
    const source = family === 'llama' ? llama : gpt2
    const layer = family === 'llama' ? 'model.layers.0.mlp.up_proj' : 'h.0.mlp.c_fc'
    const [rows, columns] = family === 'llama' ? [40, 24] : [24, 40]
    const data = Uint8Array.from({ length: rows * columns }, (_, i) => (i % 3 === 0 ? 1 : 0))
    const mask = join(await temporaryFolder(), 'mask.safetensors')
    await writeSafetensors(mask, [{ name: `${layer}.weight`, dtype: 'BOOL', shape: [rows, columns], data }])
    const { weight, report } = await pruned(source, { mask, include: layer })
    weight(layer).forEach((value, i) => expect(value === 0).toBe(data[i] === 1))
    expect(report.sparsity.target).toBeCloseTo(1 / 3, 6)
  })

  test('with bits the kept weights lie on few levels per row', async () => {
    const { weight } = await pruned(llama, { sparsity: 0.5, bits: 3, include: 'layers.0.mlp.up_proj' })
    const values = weight('model.layers.0.mlp.up_proj')
    for (let r = 0; r < 40; r++)
      expect(new Set(values.subarray(r * 24, (r + 1) * 24)).size).toBeLessThanOrEqual(8)
  })
})

test('progress never goes back and ends at 1', async () => {
  const seen: PruneProgress[] = []
  await pruned(llama, { onProgress: (progress) => seen.push(progress) })
  const fractions = seen.map(({ fraction }) => fraction)
  expect(fractions).toEqual([...fractions].sort((a, b) => a - b))
  expect(fractions.at(-1)).toBeCloseTo(1, 9)
  expect(seen.filter(({ layer }) => layer)).toHaveLength(14)
})

describe('a run that fails leaves nothing behind and the model as it was', () => {
  const tokens = randomTokens(300, 5)

  async function fails(
    folder: string,
    options: PruneOptions,
    code: Parameters<typeof expectError>[1],
    message: RegExp,
  ) {
    const parent = await temporaryFolder()
    await withModel(folder, async (model) => {
      const run = prune(model, { calibration, out: join(parent, 'out'), ...options })
      await expectError(run, code, message)
      expect(model.folder).toBe(folder)
    })
    expect(await readdir(parent)).toEqual([])
  }

  test('stopped by its signal, in the middle', async () => {
    const controller = new AbortController()
    const onProgress = ({ fraction }: PruneProgress) => fraction > 0.5 && controller.abort()
    await fails(llama, { onProgress, signal: controller.signal }, 'ABORTED', /signal/)
    await withModel(llama, async (model) => {
      const before = await perplexity(model, { tokens, sequenceLength: 32 })
      const late = new AbortController()
      const stop = ({ fraction }: PruneProgress) => fraction > 0.8 && late.abort()
      await expectError(
        prune(model, { calibration, onProgress: stop, signal: late.signal }),
        'ABORTED',
        /signal/,
      )
      expect(await perplexity(model, { tokens, sequenceLength: 32 })).toEqual(before)
    })
  })

  test('a weight that is not finite is named', async () => {
    const bad = await writeTinyModel(await temporaryFolder(), 'llama', (name, values) => {
      if (name.includes('layers.1.mlp.up_proj')) values[5] = NaN
    })
    await fails(bad, {}, 'NON_FINITE', /model\.layers\.1\.mlp\.up_proj: .*weight/)
    await fails(bad, { method: 'magnitude' }, 'NON_FINITE', /model\.layers\.1\.mlp\.up_proj: .*weight/)
  })

  test('activations that are not finite are told, with the layer', async () => {
    const bad = await writeTinyModel(await temporaryFolder(), 'llama', (name, values) => {
      if (name.includes('layers.0.post_attention_layernorm')) values[5] = Infinity
    })
    await fails(bad, {}, 'NON_FINITE', /model\.layers\.0\.mlp\.gate_proj: .*inputs are not finite/)
    await fails(bad, { method: 'wanda' }, 'NON_FINITE', /model\.layers\.0\.mlp\.gate_proj: .*inputs/)
  })

  test.each<[string, PruneOptions, Parameters<typeof expectError>[1], RegExp]>([
    ['sparsity 1', { sparsity: 1 }, 'INVALID_OPTION', /option sparsity.*given: 1/],
    ['sparsity below 0', { sparsity: -0.1 }, 'INVALID_OPTION', /option sparsity/],
    ['pattern 4:2', { pattern: '4:2' }, 'INVALID_OPTION', /option pattern.*2:4 or 4:8.*given: "4:2"/],
    ['a pattern that does not divide', { pattern: '2:7' }, 'INVALID_OPTION', /q_proj has 24 columns/],
    [
      'sparsity and pattern',
      { sparsity: 0.5, pattern: '2:4' },
      'INVALID_OPTION',
      /one of sparsity, pattern and mask/,
    ],
    ['an unknown option', { sparcity: 0.5 } as never, 'INVALID_OPTION', /unknown option sparcity/],
    ['no block left', { minBlock: 2 }, 'INVALID_OPTION', /minBlock 2/],
    [
      'no layer left',
      { include: 'nothing' },
      'INVALID_OPTION',
      /names are like model\.layers\.0\.self_attn\.q_proj/,
    ],
    ['a bad expression', { include: '(' }, 'INVALID_OPTION', /option include.*regular expression/],
    [
      'groups that do not divide',
      { bits: 4, groupSize: 32 },
      'INVALID_OPTION',
      /option groupSize: .*q_proj has 24 columns/,
    ],
    ['bits without sparsegpt', { method: 'wanda', bits: 4 }, 'INVALID_OPTION', /option bits/],
    ['a short text', { calibration: { tokens: [1, 2, 3], sequenceLength: 32 } }, 'INVALID_TEXT', /3 tokens/],
    ['a missing text', { calibration: { file: '/nowhere.txt' } }, 'FILE_NOT_FOUND', /\/nowhere\.txt/],
    [
      'windows beyond the context',
      { calibration: { tokens, sequenceLength: 65 } },
      'INVALID_OPTION',
      /context of 64/,
    ],
    [
      'token ids out of range',
      { calibration: { tokens: [99], sequenceLength: 1 } },
      'INVALID_OPTION',
      /token id 99/,
    ],
    ['a missing mask file', { mask: '/nowhere.safetensors' }, 'FILE_NOT_FOUND', /\/nowhere\.safetensors/],
  ])('%s', async (_title, options, code, message) => {
    await fails(llama, options, code, message)
  })

  test('calibration is needed, but not for magnitude', async () => {
    await withModel(llama, async (model) => {
      await expectError(
        prune(model, {}),
        'INVALID_OPTION',
        /option calibration: is needed for method "sparsegpt"/,
      )
      expect((await prune(model, { method: 'magnitude' })).layers).toHaveLength(14)
    })
  })

  test('masks that are missing or of another shape', async () => {
    const mask = join(await temporaryFolder(), 'mask.safetensors')
    const name = 'model.layers.0.self_attn.k_proj.weight'
    await writeSafetensors(mask, [{ name, dtype: 'U8', shape: [24, 12], data: new Uint8Array(288) }])
    await fails(
      llama,
      { mask },
      'INVALID_CHECKPOINT',
      /no mask named model\.layers\.0\.self_attn\.q_proj\.weight/,
    )
    await fails(llama, { mask, include: 'layers.0.*k_proj' }, 'INVALID_CHECKPOINT', /\[24, 12\].*\[12, 24\]/)
  })

  test('an output folder that exists is kept, unless forced', async () => {
    const out = await temporaryFolder()
    await writeFile(join(out, 'mine.txt'), 'mine')
    await withModel(llama, async (model) => {
      await expectError(prune(model, { calibration, out }), 'OUTPUT_EXISTS', /exists/)
      expect(await readFile(join(out, 'mine.txt'), 'utf8')).toBe('mine')
      await expectError(
        prune(model, { calibration, out, force: true }),
        'OUTPUT_EXISTS',
        /not a model folder/,
      )
      for (const name of ['config.json', 'model.safetensors']) await writeFile(join(out, name), '')
      await prune(model, { calibration, out, force: true })
    })
    expect((await readdir(out)).sort()).toEqual(files)
    expect((await stat(out)).isDirectory()).toBe(true)
  })
})
