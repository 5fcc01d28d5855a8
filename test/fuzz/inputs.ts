import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { serializeHeader } from '../../src/files/safetensors.js'
import { PythonRandom } from '../../src/text/python-random.js'
import type { TestTensor } from '../files/files.js'
import { op, statePickle, tensorPickle, torchFiles, zip, type ZipFile } from '../files/torch-archive.js'
import { variants, weights } from '../models/variants.js'
import { asText, randomTokens } from '../tiny-model.js'
import { chance, fewTimes, foreignContents, jsonText, mutateBytes, mutateJson, pick } from './mutations.js'
import { tokenizers } from './tokenizers.js'

/** What a program is given to work on, and which of its calls see what was mutated. */
export interface Input {
  seed: number
  kind: Kind
  /** The files, by path below the work folder; `model/` is the model. A folder is null. */
  files: Record<string, Uint8Array | null>
  job: Job
}

/** What `exercise.mjs` does with a work folder. */
export interface Job {
  /** The options of `prune`, calibration and paths apart. */
  prune: Record<string, unknown>
  /** Below the work folder: a file of text or token ids, and one of masks. */
  text?: string
  mask?: string
  /** Whether the model's tokenizer encodes something. */
  encode?: boolean
  /** Whether a stopped job is resumed, with the result that lies in `whole/`. */
  resume?: 'same' | 'any'
}

/** A job that was stopped after its first block: its partial folder, and what `out` is without the interruption. */
export interface Stopped {
  model: Record<string, Buffer>
  partial: Record<string, Buffer>
  whole: Record<string, Buffer>
}

/** Ids that all models have: their vocabularies have 16 entries or more. */
export const calibrationTokens = randomTokens(200).map((id) => id % 16)

/** The name of the partial folder. */
const stoppedFolder = 'out.partial-1-00000000'

/** A checkpoint in memory. */
interface Base {
  config: Record<string, unknown>
  tensors: TestTensor[]
}

const bases: Base[] = Object.values(variants).map(({ config, shapes }) => ({
  config,
  tensors: weights(shapes),
}))

const sentence = (seed: number) => asText(randomTokens(30, seed).map((id) => id % 16))

type Files = Input['files']
type Spoiled = Pick<Input, 'files'> & Partial<Job>
type Make = (random: PythonRandom, model: Base, stopped: Stopped) => Spoiled

const modelFile = 'model/model.safetensors'
const wordTokenizer = Buffer.from(JSON.stringify(tokenizers.words))

const safetensors = (tensors: readonly TestTensor[]) =>
  Buffer.concat([serializeHeader(tensors, { format: 'pt' }).header, ...tensors.map(({ data }) => data)])

const configOf = ({ config }: Base): Files => ({ 'model/config.json': Buffer.from(JSON.stringify(config)) })
const whole = (model: Base): Files => ({ ...configOf(model), [modelFile]: safetensors(model.tensors) })

/** A safetensors file with its header, as JSON, changed. */
function withHeader(
  random: PythonRandom,
  tensors: readonly TestTensor[],
  change: (json: unknown) => unknown,
) {
  const bytes = safetensors(tensors)
  const end = 8 + Number(bytes.readBigUInt64LE())
  const header = jsonText(random, change(JSON.parse(bytes.toString('utf8', 8, end))))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([length, header, bytes.subarray(end)])
}

const dtypes = ['F32', 'F16', 'BF16', 'F64', 'I64', 'I32', 'U8', 'BOOL', 'F8_E4M3', 'F4', 'C64', 'X']

/** A header entry with another dtype, shape or place, or any other change of the header. */
function spoilHeader(random: PythonRandom, json: unknown): unknown {
  const entries = Object.values(json as object).filter((entry) => Array.isArray(entry?.shape))
  if (entries.length === 0 || chance(random, 50)) return mutateJson(random, json)
  const entry = pick(random, entries)
  const field = pick(random, ['dtype', 'shape', 'data_offsets'])
  if (field === 'dtype') entry.dtype = pick(random, dtypes)
  else entry[field] = mutateJson(random, entry[field])
  return json
}

/** The file with any of its bytes changed, cut off, or another file. */
const spoilFile = (random: PythonRandom, bytes: Buffer): Buffer =>
  chance(random, 5) ? pick(random, foreignContents) : fewTimes(random, bytes, (b) => mutateBytes(random, b))

const values = [NaN, Infinity, -Infinity, 3e38, -1e30, 1e19, 1e-30, 1e-45, -0, 0, 1]

/** Weights of which one, some or all have a value that is no good weight, in any of the dtypes. */
function spoilValues(random: PythonRandom, tensor: TestTensor): TestTensor {
  const floats = new Float32Array(Uint8Array.from(tensor.data).buffer)
  const value = pick(random, values)
  const step = pick(random, [floats.length, 7, 1])
  for (let i = random.randint(0, step - 1); i < floats.length; i += step) floats[i] = value
  const data = new Uint8Array(floats.buffer)
  if (chance(random, 60)) return { ...tensor, data }
  return { ...tensor, dtype: 'BF16', data: data.filter((_, i) => i % 4 >= 2) }
}

/** The tensors with matrices packed of which every second element is zero. */
function packed(tensors: readonly TestTensor[]): TestTensor[] {
  return tensors.flatMap((tensor) => {
    if (!pruned(tensor) || !tensor.name.endsWith('.weight')) return [tensor]
    const [rows, columns] = tensor.shape as [number, number]
    const width = Math.ceil(columns / 8)
    const bits = new Uint8Array(rows * width)
    const kept: number[] = []
    const offsets: number[] = []
    for (let i = 0; i < rows * columns; i++) {
      const column = i % columns
      if (column === 0) offsets.push(kept.length)
      if (column % 2 > 0) continue
      bits[Math.floor(i / columns) * width + (column >> 3)]! |= 1 << (column & 7)
      kept.push(i)
    }
    const data = Buffer.concat(kept.map((i) => tensor.data.subarray(4 * i, 4 * i + 4)))
    const prefix = tensor.name.slice(0, -'.weight'.length)
    return [
      { name: `${prefix}.shape`, dtype: 'I64', shape: [2], data: integers([rows, columns], 'I64') },
      { name: `${prefix}.compressed`, dtype: 'F32', shape: [kept.length], data },
      { name: `${prefix}.bitmask`, dtype: 'U8', shape: [rows, width], data: bits },
      { name: `${prefix}.row_offsets`, dtype: 'I64', shape: [rows], data: integers(offsets, 'I64') },
    ]
  })
}

/** The tensors with matrices as codes of 4 bits, of which every second is zero: with a bitmask, or as pack-quantized has them. */
function coded(tensors: readonly TestTensor[], form: 'bitmask' | 'pack-quantized'): TestTensor[] {
  return tensors.flatMap((tensor) => {
    if (!pruned(tensor) || !tensor.name.endsWith('.weight')) return [tensor]
    const [rows, columns] = tensor.shape as [number, number]
    const prefix = tensor.name.slice(0, -'.weight'.length)
    const scale: Omit<TestTensor, 'name'> = {
      dtype: 'F32',
      shape: [rows, 1],
      data: Buffer.from(new Float32Array(rows).fill(0.01).buffer),
    }
    if (form === 'pack-quantized') {
      const words = Math.ceil(columns / 8)
      const down = Math.ceil(rows / 8)
      return [
        {
          name: `${prefix}.weight_packed`,
          dtype: 'I32',
          shape: [rows, words],
          data: nibbles(rows, columns, 4 * words),
        },
        { ...scale, name: `${prefix}.weight_scale` },
        { name: `${prefix}.weight_shape`, dtype: 'I64', shape: [2], data: integers([rows, columns], 'I64') },
        {
          name: `${prefix}.weight_zero_point`,
          dtype: 'I32',
          shape: [down, 1],
          data: new Uint8Array(4 * down).fill(0x88),
        },
      ]
    }
    const kept = Math.ceil(columns / 2)
    const width = Math.ceil(kept / 2)
    const bits = new Uint8Array(rows * Math.ceil(columns / 8)).fill(0x55)
    const spare = columns % 8
    for (let i = 1; spare > 0 && i <= rows; i++) bits[(i * bits.length) / rows - 1]! &= 2 ** spare - 1
    const starts = Array.from({ length: rows }, (_, i) => i * width)
    return [
      {
        name: `${prefix}.code_shape`,
        dtype: 'I64',
        shape: [4],
        data: integers([rows, columns, 4, columns], 'I64'),
      },
      { name: `${prefix}.row_offsets`, dtype: 'I64', shape: [rows], data: integers(starts, 'I64') },
      { ...scale, name: `${prefix}.scale` },
      { name: `${prefix}.zero_point`, dtype: 'U8', shape: [rows, 1], data: new Uint8Array(rows).fill(8) },
      { name: `${prefix}.bitmask`, dtype: 'U8', shape: [rows, bits.length / rows], data: bits },
      { name: `${prefix}.codes`, dtype: 'U8', shape: [rows * width], data: nibbles(rows, kept, width) },
    ]
  })
}

/** Rows of `count` codes of 4 bits, each in `bytes` bytes. */
function nibbles(rows: number, count: number, bytes: number): Uint8Array {
  const data = new Uint8Array(rows * bytes)
  for (let i = 0; i < rows * count; i++) {
    const j = i % count
    data[Math.floor(i / count) * bytes + (j >> 1)]! |= ((i * 7) % 16) << (4 * (j & 1))
  }
  return data
}

const partName =
  /\.(shape|compressed|bitmask|row_offsets|code_shape|codes|scale|zero_point|weight_(packed|scale|shape|zero_point))$/

/** Packed parts of which one is gone, or does not fit the others any more. */
function spoilParts(random: PythonRandom, tensors: TestTensor[]): TestTensor[] {
  const parts = tensors.filter(({ name }) => partName.test(name))
  const victim = pick(random, parts)
  if (chance(random, 10)) return tensors.filter((tensor) => tensor !== victim)
  if (chance(random, 10))
    return tensors.map((tensor) =>
      tensor === victim ? { ...pick(random, parts), name: victim.name } : tensor,
    )
  const data = Buffer.from(victim.data)
  const spoiled =
    victim.dtype === 'I64'
      ? data.writeBigInt64LE(
          pick(random, [-1n, 0n, 1n, 2n ** 31n, 2n ** 53n, 2n ** 63n - 1n]),
          8 * random.randint(0, data.length / 8 - 1),
        )
      : data.writeUInt8(random.randint(0, 255), random.randint(0, data.length - 1))
  return spoiled > 0 ? tensors.map((tensor) => (tensor === victim ? { ...tensor, data } : tensor)) : tensors
}

const quantization = {
  quant_method: 'compressed-tensors',
  format: 'pack-quantized',
  config_groups: {
    group_0: { targets: ['Linear'], weights: { num_bits: 4, type: 'int', strategy: 'channel' } },
  },
}

const indexFile = 'model/model.safetensors.index.json'

function shards(random: PythonRandom, model: Base): Files {
  const name = (i: number) => `model-0000${i + 1}-of-00002.safetensors`
  const weightMap = Object.fromEntries(model.tensors.map((tensor, i) => [tensor.name, name(i % 2)]))
  let index: unknown = { metadata: { total_size: 1 }, weight_map: weightMap }
  index = fewTimes(random, index, (json) => {
    if (chance(random, 50)) return mutateJson(random, json)
    const map = (json as { weight_map?: Record<string, unknown> | null }).weight_map ?? undefined
    const file = pick(random, [
      name(0),
      name(2),
      '',
      '.',
      '..',
      '/etc/passwd',
      'config.json',
      'a/b.safetensors',
    ])
    if (typeof map === 'object' && Object.keys(map).length > 0) map[pick(random, Object.keys(map))] = file
    return json
  })
  const files: Files = { ...configOf(model), [indexFile]: jsonText(random, index) }
  for (const part of [0, 1]) {
    const bytes = safetensors(model.tensors.filter((_, i) => i % 2 === part))
    files[`model/${name(part)}`] = chance(random, 20) ? spoilFile(random, bytes) : bytes
  }
  if (chance(random, 10)) files[`model/${name(0)}`] = null
  return files
}

const opcodes = [
  op.mark,
  op.stop,
  op.none,
  op.emptyTuple,
  op.emptyDict,
  op.tuple,
  op.tuple1,
  op.reduce,
  op.build,
  op.setitem,
  op.setitems,
  op.persistent,
  op.stackGlobal,
  op.global('os', 'system'),
  op.global('torch._utils', '_rebuild_tensor_v2'),
  op.text('storage'),
  op.int(-1),
  op.int(2 ** 40),
  op.flag(true),
  Buffer.from('0'),
  Buffer.from('2'),
  Buffer.from(']'),
  Buffer.from('a'),
  Buffer.from('e'),
  Buffer.from('q\x01h\x01', 'latin1'),
  Buffer.from('r\xff\xff\xff\xff', 'latin1'),
  Buffer.from('X\xff\xff\xff\x7f', 'latin1'),
]

function torchArchive(random: PythonRandom, { tensors }: Base): Buffer {
  const pickles: Record<string, Buffer> = {}
  const storages: Record<string, Uint8Array> = {}
  const victim = pick(random, tensors).name
  const way = random.randint(0, 3)
  for (const [i, { name, shape, data }] of tensors.entries()) {
    const strides = shape.map((_, at) => shape.slice(at + 1).reduce((a, b) => a * b, 1))
    const view = {
      storage: String(i),
      type: 'FloatStorage',
      storageSize: data.length / 4,
      offset: 0,
      shape,
      strides,
    }
    const spoiled = way === 0 && name === victim ? spoilView(random, view) : view
    pickles[name] = tensorPickle(spoiled)
    storages[String(i)] = data
  }
  let pickle = statePickle(pickles)
  if (way === 1) {
    pickle = fewTimes(random, pickle, (bytes) => {
      const at = random.randint(0, bytes.length)
      return chance(random, 50)
        ? mutateBytes(random, bytes)
        : Buffer.concat([bytes.subarray(0, at), pick(random, opcodes), bytes.subarray(at)])
    })
  }
  let files: ZipFile[] = torchFiles(pickle, storages)
  if (way === 2) {
    const lie: Partial<ZipFile> = pick<Partial<ZipFile>>(random, [
      { method: 8 },
      { name: '../x' },
      { directoryName: 'archive/data.pkl' },
      { directoryOffset: pick(random, [0, 1, 2 ** 31, 2 ** 32 - 1]) },
      { directoryBytes: pick(random, [0, 1, 2 ** 31, 2 ** 32 - 1]) },
      { data: Buffer.alloc(0) },
      { padding: random.randint(0, 65535) },
    ])
    const which = random.randint(0, files.length - 1)
    files = files.map((file, i) => (i === which ? { ...file, ...lie } : file))
    if (chance(random, 30)) files = [...files, ...files]
  }
  const archive = zip(files, { zip64: chance(random, 30) })
  return way === 3 ? spoilFile(random, archive) : archive
}

function spoilView(random: PythonRandom, view: Parameters<typeof tensorPickle>[0]) {
  const changed = { ...view }
  const sizes = [-1, 0, 1, 2, 1000, 2 ** 31, 2 ** 40, Number.MAX_SAFE_INTEGER]
  const list = (old: number[]) =>
    pick(random, [[], [...old, pick(random, sizes)], old.map(() => pick(random, sizes)), [...old].reverse()])
  switch (random.randint(0, 5)) {
    case 0:
      changed.storage = pick(random, ['x', '', '../version', '0'])
      break
    case 1:
      changed.type = pick(random, ['HalfStorage', 'LongStorage', 'UntypedStorage', 'x'])
      break
    case 2:
      changed.storageSize = pick(random, sizes)
      break
    case 3:
      changed.offset = pick(random, sizes)
      break
    case 4:
      changed.shape = list(view.shape)
      break
    default:
      changed.strides = list(view.strides)
  }
  return changed
}

/** Rows of text, as bytes that are mutated before they are packed, or after. */
function rows(random: PythonRandom, extension: 'jsonl' | 'json'): Buffer {
  const list: unknown[] = Array.from({ length: 6 }, (_, i) => ({ text: sentence(i), id: i }))
  const changed = fewTimes(random, list, (json) => mutateJson(random, json) as unknown[])
  if (extension === 'json') return jsonText(random, changed)
  const lines = Array.isArray(changed) ? changed : [changed]
  return Buffer.concat(lines.flatMap((row) => [jsonText(random, row ?? null), Buffer.from('\n')]))
}

function parquet(random: PythonRandom): Buffer {
  const data = Array.from({ length: 6 }, (_, i) => sentence(i))
  const text = { name: 'text', data, type: 'STRING' as const }
  const columnData = pick(random, [
    [text],
    [text, { name: 'id', data: data.map((_, i) => i), type: 'INT32' as const }],
    [{ ...text, data: data.map((value, i) => (i === 3 ? null : value)), nullable: true }],
    [{ name: 'text', data: data.map((_, i) => i), type: 'INT32' as const }],
  ])
  const codec = pick(random, ['SNAPPY', 'UNCOMPRESSED'] as const)
  return spoilFile(random, Buffer.from(parquetWriteBuffer({ columnData, codec, rowGroupSize: 3 })))
}

/** The files, with the bytes of some of them changed. */
function spoilSome(random: PythonRandom, files: Record<string, Buffer>): Files {
  const names = Object.keys(files)
  return fewTimes<Files>(random, files, (old) => {
    const name = pick(random, names)
    const bytes = old[name]
    const spoiled = chance(random, 10) || bytes == null ? null : spoilFile(random, Buffer.from(bytes))
    return { ...old, [name]: spoiled }
  })
}

const under = (folder: string, files: Files): Files =>
  Object.fromEntries(Object.entries(files).map(([name, bytes]) => [`${folder}/${name}`, bytes]))

/** Integers of a list, as the bytes of I32 or I64. */
const integers = (list: readonly number[], dtype: 'I32' | 'I64') =>
  new Uint8Array(dtype === 'I32' ? Int32Array.from(list).buffer : BigInt64Array.from(list, BigInt).buffer)

const pruned = (tensor: TestTensor) => tensor.shape.length === 2

const makers = {
  'safetensors header': (random, model) => ({
    files: {
      ...configOf(model),
      [modelFile]: withHeader(random, model.tensors, (json) =>
        fewTimes(random, json, (header) => spoilHeader(random, header)),
      ),
    },
  }),
  'safetensors bytes': (random, model) => ({
    files: { ...configOf(model), [modelFile]: spoilFile(random, safetensors(model.tensors)) },
  }),
  weights: (random, model) => {
    const victims = new Set([pick(random, model.tensors), pick(random, model.tensors)])
    const tensors = model.tensors.map((tensor) =>
      victims.has(tensor) ? spoilValues(random, tensor) : tensor,
    )
    return { files: whole({ ...model, tensors }) }
  },
  'shard index': (random, model) => ({ files: shards(random, model) }),
  packed: (random, model) => {
    const form = pick(random, ['values', 'bitmask', 'pack-quantized'] as const)
    const tensors = form === 'values' ? packed(model.tensors) : coded(model.tensors, form)
    const change = pick(random, ['header', 'bytes', 'parts', 'nothing'])
    const file =
      change === 'header'
        ? withHeader(random, tensors, (json) =>
            fewTimes(random, json, (header) => spoilHeader(random, header)),
          )
        : change === 'bytes'
          ? spoilFile(random, safetensors(tensors))
          : safetensors(
              change === 'parts' ? fewTimes(random, tensors, (list) => spoilParts(random, list)) : tensors,
            )
    if (form !== 'pack-quantized') return { files: { ...configOf(model), 'model/packed.safetensors': file } }
    const config = {
      ...model.config,
      quantization_config: chance(random, 30) ? mutateJson(random, quantization) : quantization,
    }
    return { files: { ...configOf({ ...model, config }), 'model/model.safetensors': file } }
  },
  'torch archive': (random, model) => ({
    files: { ...configOf(model), 'model/pytorch_model.bin': torchArchive(random, model) },
  }),
  'config.json': (random, model) => {
    const { config } = chance(random, 20) ? pick(random, bases) : model
    const changed = fewTimes<unknown>(random, config, (json) => mutateJson(random, json))
    return { files: { ...whole(model), 'model/config.json': jsonText(random, changed) } }
  },
  'config.json bytes': (random, model) => ({
    files: {
      ...whole(model),
      'model/config.json': spoilFile(random, Buffer.from(JSON.stringify(model.config))),
    },
  }),
  'tokenizer.json': (random, model) => {
    const json = pick(random, Object.values(tokenizers))
    const changed = fewTimes<unknown>(random, json, (value) => mutateJson(random, value))
    return { files: { ...whole(model), 'model/tokenizer.json': jsonText(random, changed) }, encode: true }
  },
  'vocab.json and merges.txt': (random, model) => {
    const { vocab, merges } = tokenizers.bytePairs.model
    const files = {
      'vocab.json': Buffer.from(JSON.stringify(vocab)),
      'merges.txt': Buffer.from(`#version: 0.2\n${merges.join('\n')}\n`),
      'tokenizer_config.json': Buffer.from('{"tokenizer_class":"GPT2Tokenizer"}'),
    }
    return { files: { ...whole(model), ...under('model', spoilSome(random, files)) }, encode: true }
  },
  'token file': (random, model) => {
    const dtype = pick(random, ['I32', 'I64'] as const)
    const ids = calibrationTokens.slice(0, 192)
    const shape = pick(random, [[ids.length], [ids.length / 8, 8], [ids.length / 16, 16]])
    const tensor: TestTensor = { name: 'tokens', dtype, shape, data: integers(ids, dtype) }
    const file = chance(random, 50)
      ? withHeader(random, [tensor], (json) => spoilHeader(random, json))
      : spoilFile(random, safetensors([tensor]))
    return { files: { ...whole(model), 'tokens.safetensors': file }, text: 'tokens.safetensors' }
  },
  'mask file': (random, model) => {
    const dtype = pick(random, ['BOOL', 'U8', 'I8'] as const)
    const masks = model.tensors.filter(pruned).map(({ name, shape, data }): TestTensor => {
      const mask = Uint8Array.from({ length: data.length / 4 }, () => random.randint(0, 1))
      return { name, dtype, shape, data: mask }
    })
    const file = chance(random, 50)
      ? withHeader(random, masks, (json) => spoilHeader(random, json))
      : spoilFile(random, safetensors(masks))
    return { files: { ...whole(model), 'masks.safetensors': file }, mask: 'masks.safetensors' }
  },
  'rows of text': (random, model) => {
    const extension = pick(random, ['jsonl', 'json'] as const)
    const packed = chance(random, 40)
    const bytes = chance(random, 70) ? rows(random, extension) : spoilFile(random, rows(random, extension))
    const zipped = packed ? gzipSync(bytes) : bytes
    const name = `text.${extension}${packed ? '.gz' : ''}`
    const file = packed && chance(random, 60) ? spoilFile(random, zipped) : zipped
    return { files: { ...whole(model), [name]: file }, text: name }
  },
  parquet: (random, model) => ({
    files: { ...whole(model), 'text.parquet': parquet(random) },
    text: 'text.parquet',
  }),
  'plain text': (random, model) => {
    const packed = chance(random, 50)
    const text = spoilFile(random, Buffer.from(asText(calibrationTokens)))
    const name = packed ? 'text.txt.gz' : 'text.txt'
    return {
      files: { ...whole(model), [name]: packed ? spoilFile(random, gzipSync(text)) : text },
      text: name,
    }
  },
  'partial folder': (random, _model, stopped) => {
    const { journal, ...others } = stopped.partial as { journal: Buffer }
    const onlyJournal = chance(random, 70)
    const spoiled = onlyJournal
      ? { ...others, ...spoilSome(random, { journal }) }
      : spoilSome(random, stopped.partial)
    const folders = { model: stopped.model, [stoppedFolder]: spoiled, whole: stopped.whole }
    return {
      files: Object.assign({}, ...Object.entries(folders).map(([name, files]) => under(name, files))),
      resume: onlyJournal ? 'same' : 'any',
    }
  },
} satisfies Record<string, Make>

export type Kind = keyof typeof makers
export const kinds = Object.keys(makers) as Kind[]

const methods: readonly Job['prune'][] = [
  {},
  { method: 'wanda' },
  { method: 'magnitude' },
  { encoding: 'bitmask' },
  { pattern: '2:4' },
  { bits: 4 },
  { sequential: 'layer' },
  { exclude: 'mlp' },
]

/** Input number `seed`: kinds take turns, and all else depends on the number alone. */
export function inputOf(seed: number, stopped: Stopped): Input {
  const random = new PythonRandom(seed)
  const kind = kinds[seed % kinds.length]!
  const make: Make = makers[kind]
  const { files, ...more } = make(random, pick(random, bases), stopped)
  const needsTokenizer = more.text !== undefined && !more.text.endsWith('.safetensors')
  if (needsTokenizer) files['model/tokenizer.json'] = wordTokenizer
  const prune = more.mask !== undefined || more.resume ? {} : pick(random, methods)
  return { seed, kind, files, job: { prune, ...more } }
}

/** Writes the files of an input. */
export async function writeInput({ files, job }: Input, folder: string): Promise<void> {
  for (const [name, bytes] of Object.entries(files)) {
    const path = join(folder, name)
    await mkdir(bytes ? dirname(path) : path, { recursive: true })
    if (bytes) await writeFile(path, bytes)
  }
  await writeFile(join(folder, 'job.json'), JSON.stringify(job))
}
