import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { loadModel, prune, unpack } from '../../src/index.js'
import { expandScaled, joinScaled } from '../../src/files/block-scaled.js'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { PythonRandom } from '../../src/text/python-random.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { writeSafetensors, type TestTensor } from './files.js'

/** The values of float4 e2m1 by their codes, as the OCP's specification lists them. */
const float4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6]

/** The value of a float8 e4m3, of few exponents. */
const float8 = (code: number) => (code >> 7 ? -1 : 1) * (1 + (code & 7) / 8) * 2 ** (((code >> 3) & 15) - 7)

const random = new PythonRandom(3)
const randoms = (count: number, low: number, high: number) =>
  Uint8Array.from({ length: count }, () => random.randint(low, high))

const bytes = (values: Float32Array) => new Uint8Array(values.buffer)
/** Values that are bfloat16, as such. */
const halves = (values: Float32Array) =>
  new Uint8Array(Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16).buffer)

const block = [24, 10] as const

/** A float8 matrix with its scales, powers of two, and what they stand for. */
function fp8({ name, shape }: TestTensor): { stored: TestTensor[]; plain: TestTensor } {
  const [rows = 0, columns = 0] = shape
  const across = Math.ceil(columns / block[1])
  // Of the exponents 3 to 6: values from 1/16 to nearly 1.
  const codes = randoms(rows * columns, 0, 255).map((code) => (code & 0x87) | (24 + (code & 0x18)))
  const scales = Float32Array.from(randoms(Math.ceil(rows / block[0]) * across, 0, 2), (x) => 2 ** -x)
  const values = Float32Array.from(codes, (code, at) => {
    const [i, j] = [Math.floor(at / columns), at % columns]
    return float8(code) * scales[Math.floor(i / block[0]) * across + Math.floor(j / block[1])]!
  })
  return {
    stored: [
      { name, dtype: 'F8_E4M3', shape, data: codes },
      {
        name: `${name}_scale_inv`,
        dtype: 'F32',
        shape: [scales.length / across, across],
        data: bytes(scales),
      },
    ],
    plain: { name, dtype: 'BF16', shape, data: halves(values) },
  }
}

/** The matrices of experts [experts, in, out] as float4, and what they stand for. */
function mxfp4({ name, shape }: TestTensor): { stored: TestTensor[]; plain: TestTensor } {
  const [experts = 0, inputs = 0, outputs = 0] = shape
  const groups = inputs / 32
  const codes = randoms(experts * outputs * inputs, 0, 15)
  const exponents = randoms(experts * outputs * groups, 122, 126)
  const values = new Float32Array(codes.length)
  codes.forEach((code, at) => {
    const [row, input] = [Math.floor(at / inputs), at % inputs]
    const [expert, output] = [Math.floor(row / outputs), row % outputs]
    const scale = 2 ** (exponents[row * groups + Math.floor(input / 32)]! - 127)
    values[(expert * inputs + input) * outputs + output] = float4[code]! * scale
  })
  const pairs = Uint8Array.from(
    { length: codes.length / 2 },
    (_, i) => codes[2 * i]! | (codes[2 * i + 1]! << 4),
  )
  return {
    stored: [
      { name: `${name}_blocks`, dtype: 'U8', shape: [experts, outputs, groups, 16], data: pairs },
      { name: `${name}_scales`, dtype: 'U8', shape: [experts, outputs, groups], data: exponents },
    ],
    plain: { name, dtype: 'BF16', shape, data: halves(values) },
  }
}

const forms = [
  ['deepseek_v3', 'fp8', /self_attn\..*(proj|mqa)\.weight$|experts.*\.weight$/, fp8],
  ['gpt_oss', 'mxfp4', /experts\.(gate_up|down)_proj$/, mxfp4],
] as const

describeWithShared('checkpoints with a scale for each block', () => {
  /** A golden model some of whose matrices are stored so, and the same with what they stand for. */
  async function folders(model: string, method: string, names: RegExp, form: typeof fp8) {
    const source = sharedPath('golden', 'models', model)!
    const tensors = [...(await readTensors(join(source, 'model.safetensors')))].map(
      ([name, { shape, values }]): TestTensor => ({ name, dtype: 'F32', shape, data: bytes(values) }),
    )
    const made = tensors.map((tensor) =>
      names.test(tensor.name) ? form(tensor) : { stored: [tensor], plain: tensor },
    )
    const [scaled, plain] = [await temporaryFolder(), await temporaryFolder()]
    const config = JSON.parse(await readFile(join(source, 'config.json'), 'utf8')) as object
    const quantization_config = {
      quant_method: method,
      ...(method === 'fp8' && { weight_block_size: block }),
    }
    await writeFile(join(plain, 'config.json'), JSON.stringify(config))
    await writeFile(join(scaled, 'config.json'), JSON.stringify({ ...config, quantization_config }))
    await writeSafetensors(
      join(plain, 'model.safetensors'),
      made.map((one) => one.plain),
    )
    // The scales of one file may be those of another's values.
    const all = made.flatMap(({ stored }) => stored)
    const isScale = ({ name }: TestTensor) => /scale(_inv|s)$/.test(name)
    const files = [all.filter((one) => !isScale(one)), all.filter(isScale)]
    const weight_map: Record<string, string> = {}
    for (const [i, list] of files.entries()) {
      const file = `model-0000${i + 1}-of-00002.safetensors`
      await writeSafetensors(join(scaled, file), list)
      for (const { name } of list) weight_map[name] = file
    }
    await writeFile(
      join(scaled, 'model.safetensors.index.json'),
      JSON.stringify({ metadata: {}, weight_map }),
    )
    return { scaled, plain }
  }

  test.each(forms)('%s, %s: read by expanding, written in bfloat16', async (model, method, names, form) => {
    const { scaled, plain } = await folders(model, method, names, form as typeof fp8)
    const tokens = Int32Array.from({ length: 2000 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)
    const results = []
    for (const folder of [scaled, plain]) {
      const out = join(await temporaryFolder(), 'out')
      const loaded = await loadModel(folder)
      const dense = (await loaded.logits([[1, 2, 3, 4]])).data
      const calibration = { tokens, samples: 8, sequenceLength: 32 }
      await prune(loaded, { pattern: '2:4', include: /experts|o_proj/, calibration, out })
      const pruned = (await loaded.logits([[1, 2, 3, 4]])).data
      await loaded.dispose()
      results.push({ dense, pruned, out })
    }
    const [ours, theirs] = results as [(typeof results)[0], (typeof results)[0]]
    expect(ours.dense).toEqual(theirs.dense)
    expect(ours.pruned).toEqual(theirs.pruned)
    // The same tensors as in a folder that was never scaled, and no word of the quantization.
    const config = await readFile(join(ours.out, 'config.json'), 'utf8')
    expect(JSON.parse(config)).toEqual(JSON.parse(await readFile(join(plain, 'config.json'), 'utf8')))
    const [written, due] = [await openCheckpoint(ours.out), await openCheckpoint(theirs.out)]
    const layouts = ({ tensors }: typeof written) =>
      [...tensors.values()]
        .map(({ name, dtype, shape, fused }) => ({ name, dtype, shape, fused: fused?.name }))
        .sort((a, b) => (a.name < b.name ? -1 : 1))
    expect(layouts(written)).toEqual(layouts(due))
    const expanded = join(await temporaryFolder(), 'out')
    await unpack(scaled, { out: expanded })
    const stored = await openCheckpoint(expanded)
    for (const { name, dtype, shape } of (await openCheckpoint(plain)).tensors.values()) {
      expect(stored.tensors.get(name)).toMatchObject({ dtype, shape })
    }
    const index = await readFile(join(ours.out, 'model.safetensors.index.json'), 'utf8')
    expect(index).not.toMatch(/scale_inv|_scales|_blocks/)
  })
})

test.each([
  ['too many', [2 ** 26, 0, 0]],
  ['no', [0, 4, 1]],
  ['empty', [2, 0, 1]],
])('%s experts are refused', (_, shape) => {
  const tensor = (name: string, shape: number[]) => ({
    ...{ name, dtype: 'U8' as const, shape, file: 'experts.safetensors' },
    ...{ offset: 0, bytes: shape.reduce((a, b) => a * b) },
  })
  const tensors = [
    tensor('experts.down_proj_blocks', [...shape, 16]),
    tensor('experts.down_proj_scales', shape),
  ]
  expect(() => joinScaled([{ tensors }], { form: 'mxfp4' })).toThrow(
    /experts\.safetensors: "experts.down_proj_blocks"/,
  )
})

test('the values of float8 codes', () => {
  const values = Uint8Array.of(0x38, 0x7e, 0x01, 0x08, 0xb8, 0x80, 0x7f)
  const stored = { name: 'x', shape: [1, 7], file: '', offset: 0 }
  const folder = temporaryFolder()
  return folder.then(async (place) => {
    const file = join(place, 'values')
    await writeFile(file, Buffer.concat([values, bytes(Float32Array.of(1))]))
    const scaled = {
      form: 'fp8' as const,
      block: [128, 128] as [number, number],
      values: { ...stored, file, dtype: 'F8_E4M3' as const, bytes: 7 },
      scales: { ...stored, file, shape: [1, 1], dtype: 'F32' as const, offset: 7, bytes: 4 },
    }
    const halves = new Uint16Array(
      expandScaled({ ...stored, dtype: 'BF16', bytes: 14, scaled }).buffer as ArrayBuffer,
    )
    const floats = new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer)
    expect([...floats]).toEqual([1, 448, 2 ** -9, 2 ** -6, -1, -0, NaN])
  })
})

test('values without scales of their shape are refused', async () => {
  const weight = {
    name: 'a.weight',
    dtype: 'F8_E4M3' as const,
    shape: [4, 4],
    file: 'x',
    offset: 0,
    bytes: 16,
  }
  const scales = { ...weight, name: 'a.weight_scale_inv', dtype: 'F32' as const, shape: [1, 2], bytes: 8 }
  const join = (tensors: (typeof weight | typeof scales)[]) =>
    Promise.resolve().then(() => joinScaled([{ tensors }], { form: 'fp8', block: [4, 4] }))
  await expectError(join([weight]), 'INVALID_CHECKPOINT', /"a\.weight_scale_inv" of "a\.weight" are missing/)
  await expectError(join([weight, scales]), 'INVALID_CHECKPOINT', /are F32 \[1, 2\], expected .* \[1, 1\]/)
})
