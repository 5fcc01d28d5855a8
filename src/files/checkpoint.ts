import { readdir, stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { SparseGptError } from '../errors.js'
import { quoted } from '../quoted.js'
import { blockScaling, joinScaled } from './block-scaled.js'
import { markFused, splitFused } from './fused.js'
import { parseJsonFile } from './json-file.js'
import { duplicateKey } from './json-keys.js'
import { packQuantized } from './pack-quantized.js'
import { joinPacked, joinPackQuantized } from './packed.js'
import { isPlainName } from './plain-name.js'
import { readError } from './read-error.js'
import { readRegularFile } from './regular-file.js'
import { readSafetensorsHeader, type StoredTensor } from './safetensors.js'
import { readTorchFile } from './torch-file.js'

export type { StoredTensor }

/**
 * How the weight files of a format are called and read. The first format that a folder has is used, as in transformers.
 */
export interface WeightFormat {
  /** The name of the file where all weights are in one. */
  single: string
  /** The name of the file that says which of several weight files has which tensor. */
  index: string
  /** The end of the name of every weight file, with its dot. */
  extension: string
  /** Reads where the tensors of a weight file lie. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT, UNSUPPORTED_MODEL. */
  read: (file: string) => Promise<{ tensors: StoredTensor[]; metadata: Record<string, string> }>
  /** Puts what they stand for in the place of some of the tensors of a weight file. Throws INVALID_CHECKPOINT, FILE_NOT_FOUND. */
  join?: (file: string, tensors: StoredTensor[]) => Promise<StoredTensor[]>
}

/** The format of safetensors. */
export const safetensors: WeightFormat = {
  single: 'model.safetensors',
  index: 'model.safetensors.index.json',
  extension: '.safetensors',
  read: readSafetensorsHeader,
}

/** The format of `torch.save`, which older checkpoints have. */
export const torch: WeightFormat = {
  single: 'pytorch_model.bin',
  index: 'pytorch_model.bin.index.json',
  extension: '.bin',
  read: readTorchFile,
}

/** The format of safetensors in which matrices may be packed; its files have names of their own, since few programs know it. */
export const packed: WeightFormat = {
  single: 'packed.safetensors',
  index: 'packed.safetensors.index.json',
  extension: '.safetensors',
  // What is packed lies in the order in which it was written, but is listed in its source's.
  read: (file) => readSafetensorsHeader(file, 'listed'),
  join: joinPacked,
}

/** The formats that are read, in the order of preference. */
export const formats: readonly WeightFormat[] = [safetensors, torch, packed]

/** One weight file of a checkpoint. */
export interface Shard {
  /** The name of the file in the folder, for example `model-00001-of-00002.safetensors`. */
  file: string
  /**
   * The tensors of the file, in the order in which it lists them: by offset in a safetensors file. Where there is an index,
   * those that it lists in this file. A packed matrix is one tensor, and each part of a fused one.
   */
  tensors: StoredTensor[]
  /** The file's own `__metadata__`, for example `{ format: 'pt' }`. */
  metadata: Record<string, string>
}

/** A model folder in Hugging Face layout whose headers have been read and checked; the weights stay on disk. */
export interface Checkpoint {
  /** The absolute path of the folder. */
  folder: string
  /** The contents of config.json, unchecked but for being an object. */
  config: Record<string, unknown>
  /** How the weight files are called and read. */
  format: WeightFormat
  /** The file name of the index that lists the shards, if there is one. */
  index?: string
  /** The weight files, ordered by name. */
  shards: Shard[]
  /** Every tensor of every shard by name. */
  tensors: Map<string, StoredTensor>
}

/** A checkpoint of nothing but a config.json, for weights that need no files. */
export const emptyCheckpoint = (config: Record<string, unknown>): Checkpoint => ({
  folder: '',
  config,
  format: safetensors,
  shards: [],
  tensors: new Map(),
})

/**
 * Opens a local model folder: config.json and, in this order of preference, model.safetensors, the shards that
 * model.safetensors.index.json names, pytorch_model.bin, the shards that pytorch_model.bin.index.json names, packed.safetensors, or
 * the shards that packed.safetensors.index.json names. Reads headers only, and the sizes of packed matrices; nothing in a .bin file is
 * run.
 *
 * @throws SparseGptError FILE_NOT_FOUND when the folder, config.json or the weights are missing; UNSUPPORTED_MODEL when
 * the weights are in another format; INVALID_CHECKPOINT when a file is damaged or a shard lacks a tensor that the index
 * lists in it.
 */
export async function openCheckpoint(folder: string): Promise<Checkpoint> {
  const path = resolve(folder)
  const names = await listFolder(path, folder)
  const config = await readConfig(path, names)
  const format = formats.find(({ single, index }) => names.includes(single) || names.includes(index))
  if (!format) throw names.includes(adapterConfig) ? await adapter(path) : noWeights(path, names)
  const { single, index, read } = format
  const bits = format === safetensors ? packQuantized(config) : undefined
  const joined =
    bits === undefined
      ? format.join
      : (file: string, tensors: StoredTensor[]) => joinPackQuantized(file, tensors, bits)
  const scaling = format === safetensors ? blockScaling(config) : undefined
  const expanded = (shards: Shard[]) => (scaling ? joinScaled(shards, scaling) : shards)
  const partsOf = async (file: string, stored: StoredTensor[]) => {
    return joined ? markFused(splitFused(await joined(file, stored))) : splitFused(stored)
  }
  if (names.includes(single)) {
    const file = join(path, single)
    const { tensors: stored, metadata } = await read(file)
    const shards = expanded([{ file: single, tensors: await partsOf(file, stored), metadata }])
    return { folder: path, config, format, shards, tensors: tensorsOf(shards) }
  }
  const mapped = await readWeightMap(join(path, index), format)
  const shards: Shard[] = []
  const stored = new Set<string>()
  for (const file of [...new Set(mapped.values())].sort()) {
    if (!names.includes(file)) {
      throw new SparseGptError(
        'FILE_NOT_FOUND',
        `${join(path, file)} does not exist, but ${index} names it: download the missing shard`,
      )
    }
    const shard = await read(join(path, file))
    // The index decides: what it does not list, or lists elsewhere, is no part of the checkpoint.
    const listed = shard.tensors.filter(({ name }) => mapped.get(name) === file)
    for (const { name } of listed) stored.add(name)
    shards.push({ file, ...shard, tensors: await partsOf(join(path, file), listed) })
  }
  checkWeightMap(join(path, index), mapped, stored)
  const whole = expanded(shards)
  return { folder: path, config, format, index, shards: whole, tensors: tensorsOf(whole) }
}

const tensorsOf = (shards: readonly Shard[]): Map<string, StoredTensor> =>
  new Map(shards.flatMap(({ tensors }) => tensors.map((tensor) => [tensor.name, tensor] as const)))

/**
 * The contents of a model folder's config.json, unchecked but for being an object.
 *
 * @throws SparseGptError FILE_NOT_FOUND, INVALID_CHECKPOINT.
 */
export async function readConfig(folder: string, names?: string[]): Promise<Record<string, unknown>> {
  const path = resolve(folder)
  names ??= await listFolder(path, folder)
  if (!names.includes('config.json')) {
    if (names.includes(adapterConfig)) throw await adapter(path)
    throw new SparseGptError(
      'FILE_NOT_FOUND',
      (await cacheRoot(path, names)) ??
        `${path} has no config.json: a model folder in Hugging Face layout is needed`,
    )
  }
  return (await readJsonObject(join(path, 'config.json'))).value
}

async function listFolder(path: string, given: string): Promise<string[]> {
  const advice = 'give the path of a local model folder'
  try {
    if (!(await stat(path)).isDirectory()) {
      throw new SparseGptError('FILE_NOT_FOUND', `${path} is a file: ${advice}`)
    }
    return await readdir(path)
  } catch (error) {
    throw readError(error, `model folder ${given === path ? path : `${given} (${path})`}`, advice)
  }
}

/** The file of settings that a folder of a LoRA adapter has. */
const adapterConfig = 'adapter_config.json'

async function adapter(path: string): Promise<SparseGptError> {
  const { value } = await readJsonObject(join(path, adapterConfig))
  const base = value['base_model_name_or_path']
  const of = typeof base === 'string' ? ` of ${quoted(base)}` : ''
  return new SparseGptError(
    'UNSUPPORTED_MODEL',
    `${path} is a LoRA adapter${of}, not a model: merge it into its model first (peft: merge_and_unload(), then ` +
      'save_pretrained(folder))',
  )
}

/** What to say of the folder that the hub's cache keeps of a repository, in which the model lies deeper. */
async function cacheRoot(path: string, names: string[]): Promise<string | undefined> {
  if (!names.includes('snapshots') || !names.includes('blobs')) return undefined
  const [snapshot = '<revision>'] = (await readdir(join(path, 'snapshots')).catch(() => [])).sort()
  const id = /^models--(.+?)--(.+)$/.exec(basename(path))?.slice(1).join('/')
  const or = id === undefined ? '' : `, or the hub id ${id}`
  return `${path} is a repository in the hub's cache, which has no config.json of its own: give ${join(path, 'snapshots', snapshot)}${or}`
}

function noWeights(path: string, names: string[]): SparseGptError {
  const shard = names.find((name) =>
    /^(pytorch_model|model|packed)-\d+-of-\d+\.(safetensors|bin)$/.test(name),
  )
  const format = formats.find(
    (each) => shard?.startsWith(stemOf(each)) === true && shard.endsWith(each.extension),
  )
  if (shard !== undefined && format) {
    return new SparseGptError(
      'FILE_NOT_FOUND',
      `${join(path, format.index)} does not exist, but there is ${shard}: download the index, which says which shard has ` +
        'which tensor',
    )
  }
  const other = names.find((name) => /\.(bin|pt|pth|gguf|h5|msgpack|safetensors)$/i.test(name))
  if (other !== undefined) {
    return new SparseGptError(
      'UNSUPPORTED_MODEL',
      `${path} has none of ${weightFiles()}; if its weights are in ${other}, convert them ` +
        '(transformers: model.save_pretrained(folder))',
    )
  }
  return new SparseGptError('FILE_NOT_FOUND', `${path} has no weights: none of ${weightFiles()} is there`)
}

/** How the names of a format's weight files begin. */
export const stemOf = ({ single, extension }: WeightFormat) => single.slice(0, -extension.length)

const weightFiles = () => formats.flatMap(({ single, index }) => [single, index]).join(', ')

/** The largest config or index that is read, in bytes: an index has about 100 per tensor. */
const maxJsonBytes = 2 ** 27

async function readJsonObject(file: string): Promise<{ value: Record<string, unknown>; text: string }> {
  const advice = 'a readable file is needed'
  const text = (await readRegularFile(file, { advice, maxBytes: maxJsonBytes })).toString('utf8')
  const value = parseJsonFile(file, text)
  if (!isMap(value)) throw new SparseGptError('INVALID_CHECKPOINT', `${file} must hold a JSON object`)
  return { value, text }
}

/**
 * The name of the shard that each tensor is in, by the tensor's name, from an index. Throws FILE_NOT_FOUND,
 * INVALID_CHECKPOINT.
 */
export async function readWeightMap(file: string, { extension }: WeightFormat): Promise<Map<string, string>> {
  const { value, text } = await readJsonObject(file)
  const twice = duplicateKey(text)
  if (twice !== undefined) {
    throw new SparseGptError('INVALID_CHECKPOINT', `${file} has the key ${JSON.stringify(twice)} twice`)
  }
  const map = value['weight_map']
  if (!isMap(map) || Object.keys(map).length === 0) {
    throw new SparseGptError('INVALID_CHECKPOINT', `${file} must have a weight_map from tensor to file names`)
  }
  return new Map(
    Object.entries(map).map(([name, shard]) => {
      // The index is untrusted: a path in it could read, and later write, outside the folder.
      if (typeof shard !== 'string' || !isPlainName(shard) || !shard.endsWith(extension)) {
        throw new SparseGptError(
          'INVALID_CHECKPOINT',
          `${file} maps tensor ${JSON.stringify(name)} to ${quoted(shard)}, ` +
            `which is not the plain name of a ${extension} file in the same folder`,
        )
      }
      return [name, shard]
    }),
  )
}

/** What an index says besides the places of tensors; nothing where it does not. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
export async function readIndexMetadata(file: string): Promise<Record<string, unknown>> {
  const { metadata } = (await readJsonObject(file)).value
  return isMap(metadata) ? metadata : {}
}

function checkWeightMap(file: string, mapped: Map<string, string>, stored: ReadonlySet<string>): void {
  for (const [name, shard] of mapped) {
    if (!stored.has(name)) {
      throw new SparseGptError(
        'INVALID_CHECKPOINT',
        `${file} says that tensor ${JSON.stringify(name)} is in ${shard}, but it is not`,
      )
    }
  }
}

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
