import { prune, type PruneOptions } from '../loose-options.js'
import { cp, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { inspect, loadModel, plan, unpack } from '../../src/index.js'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { bitmask } from '../../src/files/encodings/bitmask.js'
import { readSafetensorsHeader, tensorBytes, type StoredDType } from '../../src/files/safetensors.js'
import { Device } from '../../src/native/device.js'
import { nearestCodes } from '../../src/pruning/codes.js'
import { writeSafetensors, type TestTensor } from '../files/files.js'
import { unlikeModels } from '../models/golden-models.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(200).map((id) => id % 16), samples: 2, sequenceLength: 32 }

async function pruned(model: string, out: string, options: Partial<PruneOptions>): Promise<string> {
  const opened = await loadModel(model, { device: 'cpu', threads: 1 })
  try {
    await prune(opened, { calibration, out, ...options })
    return out
  } finally {
    await opened.dispose()
  }
}

async function logitsOf(folder: string, ids = [1, 2, 3, 4, 5, 6]): Promise<Float32Array> {
  const model = await loadModel(folder, { device: 'cpu', threads: 1 })
  try {
    return (await model.logits([ids])).data
  } finally {
    await model.dispose()
  }
}

/** The tensors of a folder's only weight file by name, as they are in it. */
async function storedIn(folder: string, file = 'model.safetensors'): Promise<Map<string, TestTensor>> {
  const [bytes, { tensors }] = [
    await readFile(join(folder, file)),
    await readSafetensorsHeader(join(folder, file)),
  ]
  return new Map(
    tensors.map(({ name, dtype, shape, offset, bytes: size }) => [
      name,
      { name, dtype, shape, data: Buffer.from(bytes.subarray(offset, offset + size)) },
    ]),
  )
}

async function configOf(folder: string): Promise<Record<string, unknown>> {
  return JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>
}

/** A folder of an encoded model with some of its tensors, those of its only weight file, changed. */
async function damagedCopy(
  source: string,
  file: string,
  change: (tensors: Map<string, TestTensor>) => void,
): Promise<string> {
  const folder = await temporaryFolder()
  await cp(join(source, 'config.json'), join(folder, 'config.json'))
  const tensors = await storedIn(source, file)
  change(tensors)
  await writeSafetensors(join(folder, file), [...tensors.values()])
  return folder
}

async function refused(folder: string, message: RegExp): Promise<void> {
  const out = join(await temporaryFolder(), 'out')
  const run = async (job: (model: Awaited<ReturnType<typeof loadModel>>) => Promise<unknown>) => {
    const model = await loadModel(folder, { device: 'cpu', threads: 1 })
    try {
      await job(model)
    } finally {
      await model.dispose()
    }
  }
  for (const job of [
    () => run((model) => model.logits([[1, 2, 3]])),
    () => run((model) => prune(model, { calibration, out })),
    () => unpack(folder, { out }),
    () => inspect(folder),
  ])
    await expectError(job(), 'INVALID_CHECKPOINT', message)
  expect(await readdir(join(out, '..'))).toEqual([])
}

const grids = [2, 3, 4, 8].flatMap((bits) => [true, false].map((symmetric) => ({ bits, symmetric })))

describeWithShared('models of every family on grids', () => {
  // Every family on one of the grids, and llama on all of them.
  const cases = unlikeModels.map(
    (name, i) => [name, (_: unknown, k: number) => name === 'llama' || k % 8 === i % 8] as const,
  )
  test.each(cases)('%s: codes are read as the values of the dense form', async (name, chosen) => {
    const work = await temporaryFolder()
    const model = sharedPath('golden', 'models', name)!
    const hasNoForm = name === 'gpt2' || name === 'gpt_oss'
    for (const [i, options] of grids.filter(chosen).entries()) {
      const [dense, packed] = [join(work, `dense-${i}`), join(work, `packed-${i}`)]
      await pruned(model, dense, options)
      await pruned(model, packed, { ...options, encoding: 'bitmask' })
      const expected = await readFile(join(dense, 'model.safetensors'))
      const report = await unpack(packed, { out: join(work, `unpacked-${i}`) })
      const coded = [...(await openCheckpoint(packed)).tensors.values()].filter((tensor) => tensor.codes)
      expect(coded.length).toBeGreaterThan(0)
      expect(coded.every(({ codes }) => codes!.bits === options.bits)).toBe(true)
      expect(report.bytes.before).toBeLessThan(report.bytes.after)
      const actual = await readFile(join(work, `unpacked-${i}`, 'model.safetensors'))
      expect([options, actual.equals(expected)]).toEqual([options, true])
      if (options.bits !== 4 && options.bits !== 8) continue
      const quantized = join(work, `quantized-${i}`)
      const job = pruned(model, quantized, { ...options, encoding: 'compressed-tensors' })
      if (hasNoForm) {
        await expectError(job, 'INVALID_OPTION', /\.weight, which is stored as \[in, out\].*"bitmask"/)
        continue
      }
      await job
      expect(await logitsOf(quantized)).toEqual(await logitsOf(dense))
      await unpack(quantized, { out: join(work, `back-${i}`) })
      expect(await storedIn(join(work, `back-${i}`))).toEqual(new Map(await storedIn(dense)))
      expect(await configOf(join(work, `back-${i}`))).toEqual(await configOf(dense))
    }
  })
})

describe('a matrix of codes', () => {
  const device = new Device('cpu', 1)
  afterAll(() => device.close())

  test.each([
    // A bit for each code, half the codes, 16 bits for each group and 64 for each row; a little less where codes round to zero.
    [4, true, 3.14],
    [4, false, 3.2],
    [8, true, 5.14],
    // All codes are smaller than half of them and their marks.
    [2, true, 2.13],
  ])(
    'of %i bits, symmetric %p, of which half are zero, takes %d bits a weight',
    async (bits, symmetric, most) => {
      const [rows, columns] = [64, 4096]
      const values = Float32Array.from({ length: rows * columns }, (_, i) =>
        i % 2 ? 0 : ((i * 37) % 101) / 50 - 1,
      )
      const shape = [rows, columns]
      const made = [device.upload(values, shape)]
      const grid = { bits, groupSize: 128, symmetric, transposed: false }
      const bytes = await device.within(made, async () => {
        const matrix = device.cast(made[0]!, 'bfloat16')
        const codes = { grid, ...nearestCodes(device, matrix, grid) }
        const weight = {
          name: 'a.weight',
          dtype: 'BF16' as StoredDType,
          shape,
          matrix,
          mask: undefined,
          codes,
        }
        const parts = await bitmask.encode(device, weight)
        for (const { tensor } of parts) tensor.dispose()
        return parts.reduce((sum, part) => sum + tensorBytes(part), 0)
      })
      for (const tensor of made) tensor.dispose()
      expect((8 * bytes) / (rows * columns)).toBeLessThan(most)
      expect((8 * bytes) / (rows * columns)).toBeGreaterThan(most - 0.35)
    },
  )
})

describe('the form of the output', () => {
  let work: string
  let model: string
  beforeAll(async () => {
    work = await temporaryFolder()
    model = await writeTinyModel(join(work, 'model'))
  })

  test('bitmask: names, dtypes and sizes of the parts', async () => {
    const out = await pruned(model, join(work, 'parts'), { bits: 4, encoding: 'bitmask', sparsity: 0.6 })
    const stored = await storedIn(out, 'packed.safetensors')
    const prefix = 'model.layers.0.mlp.down_proj'
    const part = (end: string) => stored.get(`${prefix}.${end}`)!
    const sizes = Buffer.from(part('code_shape').data)
    expect([0, 1, 2, 3].map((i) => Number(sizes.readBigInt64LE(8 * i)))).toEqual([24, 40, 4, 40])
    expect(part('scale')).toMatchObject({ dtype: 'F32', shape: [24, 1] })
    expect(part('zero_point')).toMatchObject({ dtype: 'U8', shape: [24, 1] })
    // So short rows are smaller without the offsets of each.
    expect(part('codes')).toMatchObject({ dtype: 'U8', shape: [24 * 20] })
    expect(stored.has(`${prefix}.bitmask`)).toBe(false)
    expect(stored.has(`${prefix}.weight`)).toBe(false)
  })

  test('layers that are not pruned, and a method without grids, are stored as without bits', async () => {
    const out = await pruned(model, join(work, 'some'), { bits: 4, encoding: 'bitmask', include: 'mlp' })
    const { tensors } = await openCheckpoint(out)
    expect(tensors.get('model.layers.0.self_attn.q_proj.weight')?.codes).toBeUndefined()
    expect(tensors.get('model.layers.0.mlp.up_proj.weight')?.codes).toMatchObject({ bits: 4 })
    const quantized = await pruned(model, join(work, 'some-quantized'), {
      bits: 8,
      symmetric: true,
      encoding: 'compressed-tensors',
      include: 'mlp',
    })
    const { quantization_config: settings } = await configOf(quantized)
    expect(settings).toMatchObject({
      quant_method: 'compressed-tensors',
      format: 'pack-quantized',
      config_groups: {
        group_0: {
          targets: ['Linear'],
          weights: { num_bits: 8, type: 'int', symmetric: true, strategy: 'channel', group_size: null },
        },
      },
    })
    const attention = ['k', 'o', 'q', 'v'].map((each) => `self_attn.${each}_proj`)
    expect((settings as { ignore: string[] }).ignore).toEqual([
      'lm_head',
      'model.embed_tokens',
      ...[0, 1].flatMap((i) => attention.map((name) => `model.layers.${i}.${name}`)),
    ])
  })

  test.each(['bitmask', 'compressed-tensors'] as const)(
    '%s: a job that was stopped goes on to the same files',
    async (encoding) => {
      const options = {
        bits: 4,
        encoding,
        sparsity: 0.75,
        ...(encoding === 'bitmask' && { headBits: 8 as const }),
      }
      const whole = await pruned(model, join(work, `whole-${encoding}`), options)
      const out = join(work, `resumed-${encoding}`)
      const controller = new AbortController()
      const onProgress = ({ phase, block }: { phase: string; block: number }) => {
        if (phase === 'solve' && block === 1) controller.abort()
      }
      const stop = { ...options, onProgress, signal: controller.signal }
      await expectError(pruned(model, out, stop), 'ABORTED', /1 block/)
      await pruned(model, out, { ...options, resume: true })
      const names = (await readdir(whole)).filter((name) => !name.startsWith('sparsegpt-report.'))
      for (const name of names)
        expect([name, (await readFile(join(out, name))).equals(await readFile(join(whole, name)))]).toEqual([
          name,
          true,
        ])
    },
  )

  test.each([
    ['BF16', true],
    ['BF16', false],
    ['F16', false],
  ] as const)(
    'of %s, symmetric %p, 8 bits: codes that the rounded weights do not tell apart',
    async (dtype, symmetric) => {
      const folder = await temporaryFolder()
      const source = await writeTinyModel(join(folder, 'model'))
      const tensors = [...(await storedIn(source)).values()].map((tensor): TestTensor => {
        const values = new Float32Array(Uint8Array.from(tensor.data).buffer)
        // All below zero, so that codes are far from the zero point.
        if (tensor.shape.length === 2)
          for (let i = 0; i < values.length; i++) values[i] = -Math.abs(values[i]!)
        const bits = new Uint32Array(values.buffer)
        const half = (word: number) => ((word >>> 16) & 0x8000) | (((word >>> 13) - (112 << 10)) & 0x7fff)
        const data = Uint16Array.from(bits, (word) =>
          dtype === 'BF16' ? word >>> 16 : word << 1 === 0 ? 0 : half(word),
        )
        return { ...tensor, dtype, data: new Uint8Array(data.buffer) }
      })
      await writeSafetensors(join(source, 'model.safetensors'), tensors)
      const dense = await pruned(source, join(folder, 'dense'), { bits: 8, symmetric })
      for (const encoding of ['bitmask', 'compressed-tensors'] as const) {
        const coded = await pruned(source, join(folder, encoding), { bits: 8, symmetric, encoding })
        await unpack(coded, { out: join(folder, `${encoding}-unpacked`) })
        expect(await storedIn(join(folder, `${encoding}-unpacked`))).toEqual(await storedIn(dense))
      }
    },
  )

  test('of groups: each has its scale, in every form', async () => {
    const source = fileURLToPath(new URL('../files/pack-quantized/8-bits', import.meta.url))
    const options = { bits: 4, groupSize: 32 } as const
    const dense = await pruned(source, join(work, 'groups-dense'), options)
    for (const encoding of ['bitmask', 'compressed-tensors'] as const) {
      const coded = await pruned(source, join(work, `groups-${encoding}`), { ...options, encoding })
      const { tensors } = await openCheckpoint(coded)
      expect(tensors.get('model.layers.0.mlp.down_proj.weight')!.codes).toMatchObject({ groupSize: 32 })
      await unpack(coded, { out: join(work, `groups-${encoding}-un`) })
      expect(await storedIn(join(work, `groups-${encoding}-un`))).toEqual(await storedIn(dense))
    }
    const { quantization_config: settings } = await configOf(join(work, 'groups-compressed-tensors'))
    expect(settings).toMatchObject({
      config_groups: { group_0: { weights: { strategy: 'group', group_size: 32 } } },
    })
  })

  test('config.json keeps the text of its other entries', async () => {
    const source = await writeTinyModel(join(work, 'odd-config'))
    const rest = JSON.stringify(await configOf(source)).slice(1, -1)
    const odd = '{"big": 12345678901234567890, "eps": 1e-05, "odd": {"quantization_config": [NaN, "},{"]},'
    await writeFile(join(source, 'config.json'), `${odd}${rest}}`)
    const options = { bits: 4, encoding: 'compressed-tensors', method: 'sparsegpt' } as const
    const out = await pruned(source, join(work, 'odd-out'), options)
    const text = await readFile(join(out, 'config.json'), 'utf8')
    for (const kept of [
      '"big": 12345678901234567890',
      '"eps": 1e-05',
      '{"quantization_config": [NaN, "},{"]}',
    ])
      expect(text).toContain(kept)
    await unpack(out, { out: join(work, 'odd-back') })
    const back = await readFile(join(work, 'odd-back', 'config.json'), 'utf8')
    expect(back.replace(/\s/g, '')).toBe(`${odd}${rest}}`.replace(/\s/g, ''))
  })

  test('a quantized model is pruned again, and says nothing of it when it is written dense', async () => {
    const options = { bits: 8, encoding: 'compressed-tensors' as const }
    const quantized = await pruned(model, join(work, 'again-quantized'), options)
    const dense = await pruned(model, join(work, 'again-dense'), { bits: 8 })
    const [a, b] = [join(work, 'again-a'), join(work, 'again-b')]
    await pruned(quantized, a, { sparsity: 0.75, exclude: 'q_proj' })
    await pruned(dense, b, { sparsity: 0.75, exclude: 'q_proj' })
    expect(await storedIn(a)).toEqual(await storedIn(b))
    expect(await configOf(a)).toEqual(await configOf(model))
    expect(await inspect(quantized)).toMatchObject({ sparsity: (await inspect(dense)).sparsity })
    expect({ ...(await plan(quantized)), model: '' }).toEqual({ ...(await plan(dense)), model: '' })
  })

  test.each([
    ['tied', true],
    ['untied', false],
  ])('headBits: the head and the embedding, %s', async (_, tied) => {
    const source = await writeTinyModel(join(work, `head-${tied}`))
    if (!tied) {
      const tensors = await storedIn(source)
      const embedding = tensors.get('model.embed_tokens.weight')!
      const data = Buffer.from(
        Float32Array.from({ length: 32 * 24 }, (_, i) => ((i * 29) % 83) / 80 - 0.5).buffer,
      )
      tensors.set('lm_head.weight', { ...embedding, name: 'lm_head.weight', data })
      await writeSafetensors(join(source, 'model.safetensors'), [...tensors.values()])
      const config = { ...(await configOf(source)), tie_word_embeddings: false }
      await writeFile(join(source, 'config.json'), JSON.stringify(config))
    }
    const out = await pruned(source, join(work, `head-out-${tied}`), { encoding: 'bitmask', headBits: 8 })
    const { tensors } = await openCheckpoint(out)
    const names = ['model.embed_tokens.weight', ...(tied ? [] : ['lm_head.weight'])]
    for (const name of names) expect(tensors.get(name)?.codes).toMatchObject({ bits: 8, groupSize: 24 })
    const [unpacked, dense] = [join(work, `head-un-${tied}`), join(work, `head-dense-${tied}`)]
    await unpack(out, { out: unpacked })
    await pruned(source, dense, {})
    const [rounded, exact] = [
      await readTensors(join(unpacked, 'model.safetensors')),
      await readTensors(join(dense, 'model.safetensors')),
    ]
    for (const [name, { values }] of exact) {
      const actual = rounded.get(name)!.values
      if (!names.includes(name)) expect(actual).toEqual(values)
      for (let row = 0; names.includes(name) && row < 32; row++) {
        const [before, after] = [values, actual].map((all) => all.subarray(24 * row, 24 * row + 24))
        const step = (2 * Math.max(...before!.map(Math.abs))) / 255
        // The largest value is half a step beyond the last code above the middle.
        for (const [i, value] of before!.entries())
          expect(Math.abs(after![i]! - value)).toBeLessThanOrEqual(step * 0.5001)
        expect(after).not.toEqual(before)
      }
    }
    expect(await logitsOf(out)).toEqual(await logitsOf(unpacked))
  })

  test.each<[Partial<PruneOptions>, RegExp]>([
    [{ encoding: 'compressed-tensors' }, /encoding.*compressed-tensors needs bits 4 or 8, not float weights/],
    [{ encoding: 'compressed-tensors', bits: 3 }, /encoding.*needs bits 4 or 8, not 3/],
    [{ encoding: 'compressed-tensors', bits: 4, headBits: 8 }, /headBits.*needs encoding "bitmask"/],
    [{ headBits: 8 }, /headBits.*needs encoding "bitmask"/],
    [{ encoding: 'bitmask', headBits: 4 as 8 }, /headBits.*must be 8/],
  ])('%j is refused', async (options, message) => {
    const out = join(work, 'none')
    await expectError(pruned(model, out, options), 'INVALID_OPTION', message)
    expect((await readdir(work)).filter((name) => name.startsWith('none'))).toEqual([])
  })

  describe('that is damaged', () => {
    let coded: string
    let quantized: string
    const prefix = 'model.layers.1.mlp.up_proj'
    beforeAll(async () => {
      // Rows of 24 codes of 8 bits, of which most are zero, so that offsets are worth while.
      const options = { bits: 8, sparsity: 0.9, include: 'mlp' }
      coded = await pruned(model, join(work, 'coded'), { ...options, encoding: 'bitmask' })
      quantized = await pruned(model, join(work, 'quantized'), { ...options, encoding: 'compressed-tensors' })
    })
    type Parts = Map<string, TestTensor>
    const part = (parts: Parts, end: string) => parts.get(`${prefix}.${end}`)!
    const set = (end: string, index: number, value: bigint) => (parts: Parts) => {
      Buffer.from(part(parts, end).data.buffer, part(parts, end).data.byteOffset).writeBigInt64LE(
        value,
        8 * index,
      )
    }
    const resize = (end: string, shape: number[], bytes: number) => (parts: Parts) => {
      Object.assign(part(parts, end), { shape, data: Buffer.alloc(bytes) })
    }

    test.each<[string, (parts: Parts) => unknown, RegExp]>([
      ['without a scale', (parts) => parts.delete(`${prefix}.scale`), /lacks .*up_proj\.scale/],
      ['without code_shape', (parts) => parts.delete(`${prefix}.code_shape`), /lacks .*up_proj\.code_shape/],
      ['without codes', (parts) => parts.delete(`${prefix}.codes`), /lacks .*up_proj\.codes/],
      [
        'a bitmask without offsets',
        (parts) => parts.delete(`${prefix}.row_offsets`),
        /both be there, or neither/,
      ],
      ['other rows', set('code_shape', 0, 39n), /up_proj\.scale is F32 \[40, 1\], expected .*\[39, groups\]/],
      ['negative columns', set('code_shape', 1, -24n), /no shape of a matrix/],
      ['a huge shape', set('code_shape', 0, 2n ** 61n), /no shape of a matrix/],
      ['9 bits', set('code_shape', 2, 9n), /\[40, 24, 9, 24\], expected .*2 to 8 bits/],
      ['a group size of 0', set('code_shape', 3, 0n), /expected .*group size that divides/],
      ['groups that do not divide', set('code_shape', 3, 7n), /expected .*group size that divides/],
      ['other groups', set('code_shape', 3, 12n), /up_proj\.scale is F32 \[40, 1\], expected F32 \[40, 2\]/],
      ['a scale of another shape', resize('scale', [40, 5], 800), /up_proj\.scale .*groups divide 24/],
      [
        'zero points of another shape',
        resize('zero_point', [40, 2], 80),
        /up_proj\.zero_point is U8 \[40, 2\]/,
      ],
      ['a bitmask of another width', resize('bitmask', [40, 4], 160), /up_proj\.bitmask is U8 \[40, 4\]/],
      ['more codes than elements', resize('codes', [961], 961), /961 bytes, but the matrix 960 at most/],
      ['a backward offset', set('row_offsets', 6, 0n), /damaged in row [56]:/],
      ['an offset beyond the end', set('row_offsets', 39, 9999n), /damaged in row 38:/],
      ['a negative offset', set('row_offsets', 3, -1n), /damaged in row 2:/],
      ['short codes', resize('codes', [9], 9), /damaged in row \d:/],
      [
        'a popcount that disagrees',
        (parts) => (part(parts, 'bitmask').data[3 * 7] = part(parts, 'bitmask').data[3 * 7]! ^ 1),
        /packed\.safetensors: the packed tensor "model\.layers\.1\.mlp\.up_proj\.weight" is damaged in row 7: its codes/,
      ],
    ])('bitmask, %s', async (_, change, message) => {
      await refused(await damagedCopy(coded, 'packed.safetensors', (parts) => void change(parts)), message)
    })

    test.each<[string, (parts: Parts) => unknown, RegExp]>([
      ['without a scale', (parts) => parts.delete(`${prefix}.weight_scale`), /lacks .*up_proj\.weight_scale/],
      [
        'other columns',
        set('weight_shape', 1, 48n),
        /up_proj\.weight_packed is I32 \[40, 6\], expected I32 \[40, 12\]/,
      ],
      ['a huge shape', set('weight_shape', 1, 2n ** 62n), /no shape of a matrix/],
      [
        'zero points of another shape',
        resize('weight_zero_point', [40, 1], 160),
        /weight_zero_point is I32 \[40, 1\], expected I32 \[10, 1\]/,
      ],
      [
        'a scale of another shape',
        resize('weight_scale', [40, 7], 1120),
        /up_proj\.weight_scale .*groups divide 24/,
      ],
    ])('compressed-tensors, %s', async (_, change, message) => {
      await refused(await damagedCopy(quantized, 'model.safetensors', (parts) => void change(parts)), message)
    })
  })
})

describe('what compressed-tensors has quantized', () => {
  const golden = (name: string) => fileURLToPath(new URL(`../files/pack-quantized/${name}`, import.meta.url))

  test.each(['4-bits', '8-bits'])('%s: gives the logits of transformers', async (name) => {
    const stored = await readTensors(golden(`${name}.safetensors`))
    const actual = await logitsOf(golden(name), Array.from(stored.get('input_ids')!.values))
    const expected = stored.get('logits')!.values
    expect(actual.length).toBe(expected.length)
    for (const [i, value] of expected.entries()) expect(actual[i]).toBeCloseTo(value, 5)
    const { tensors } = await inspect(golden(name))
    expect(tensors.find((tensor) => tensor.name.endsWith('q_proj.weight'))).toMatchObject({
      dtype: 'F32',
      shape: [64, 64],
    })
  })

  type Settings = Record<string, unknown> & { config_groups: { group_0: Record<string, object> } }
  test.each<[string, (settings: Settings) => unknown]>([
    [
      'activations',
      ({ config_groups: { group_0: group } }) => (group['input_activations'] = { num_bits: 8 }),
    ],
    ['another format', (settings) => (settings['format'] = 'int-quantized')],
    ['bits', ({ config_groups: { group_0: group } }) => Object.assign(group['weights']!, { num_bits: 3 })],
    [
      'floats',
      ({ config_groups: { group_0: group } }) => Object.assign(group['weights']!, { type: 'float' }),
    ],
    [
      'an order',
      ({ config_groups: { group_0: group } }) => Object.assign(group['weights']!, { actorder: 'group' }),
    ],
    [
      'a strategy',
      ({ config_groups: { group_0: group } }) => Object.assign(group['weights']!, { strategy: 'block' }),
    ],
    ['caches', (settings) => (settings['kv_cache_scheme'] = { num_bits: 8 })],
    ['a transform', (settings) => (settings['transform_config'] = { config_groups: { u: {} } })],
    ['not compressed', (settings) => (settings['quantization_status'] = 'frozen')],
    [
      'two widths',
      ({ config_groups: groups }) => {
        const other = structuredClone(groups.group_0)
        Object.assign(groups, { group_1: other })
        Object.assign(other['weights']!, { num_bits: 8 })
      },
    ],
  ])('is refused in a form that is not read: %s', async (_, change) => {
    const folder = join(await temporaryFolder(), 'model')
    await mkdir(folder)
    await cp(golden('4-bits'), folder, { recursive: true })
    const config = (await configOf(folder)) as { quantization_config: Settings }
    change(config.quantization_config)
    await rm(join(folder, 'config.json'))
    await writeFile(join(folder, 'config.json'), JSON.stringify(config))
    for (const open of [loadModel, plan, inspect])
      await expectError(open(folder), 'UNSUPPORTED_MODEL', /quant_method "compressed-tensors".*4 or 8 bits/)
  })
})
