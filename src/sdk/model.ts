/// <reference lib="esnext.disposable" preserve="true" />
import * as z from 'zod'
import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import { openCheckpoint } from '../files/checkpoint.js'
import { resolveModel } from '../hub/model-folder.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import { Engine, type Batch } from '../models/engine.js'
import { familyOf } from '../models/registry.js'
import { Weights } from '../models/weights.js'
import { Device, type DeviceName, type Tensor } from '../native/device.js'
import { deviceName } from '../native/devices.js'
import { parseOptions, pathOf, type PathOrUrl } from '../options.js'
import { checkTensors } from '../planning/required-tensors.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { tokenIds } from '../text/vocabulary.js'
import { startGeneration, type GenerateOptions, type Prompt, type TextGeneration } from './generate.js'
import { saveModel } from './save.js'

/** Where and how a model computes. */
export interface LoadOptions {
  /** The device to compute on: 'auto' (default), 'cpu', 'cuda', or 'cuda:1' for the second GPU. */
  device?: DeviceName
  /** The element type of activations and matrices; sums are in float32 either way. Default 'float32'. */
  dtype?: 'float32' | 'bfloat16'
  /** The number of threads of the CPU device; 0 (default) for one per core. */
  threads?: number
  /** A function that is called while a model is downloaded from the hub. */
  onDownload?: (progress: DownloadProgress) => void
  /** A signal that stops a download. */
  signal?: AbortSignal
}

const loadOptions = z.strictObject({
  device: deviceName.default('auto'),
  dtype: z.enum(['float32', 'bfloat16']).default('float32'),
  threads: z.int().min(0).max(1024).default(0),
  onDownload: z
    .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function')
    .optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/** The next-token logits of some sequences. */
export interface Logits {
  /** The logits, float32, row-major. */
  data: Float32Array
  /** The sizes: [batch, sequence, vocabulary]. */
  shape: [number, number, number]
}

/** A causal language model: weights mapped from a folder in Hugging Face layout, computed on a device. */
export interface Model {
  /** The hub id, or the name of the folder, that the model was loaded from. */
  readonly name: string
  /** The absolute path of the folder that the weights are in; after `prune` with `out` that folder. */
  readonly folder: string
  /** The device that the model computes on, as the option `device` names it. */
  readonly device: Exclude<DeviceName, 'auto'>
  /** The element type of activations and matrices. */
  readonly dtype: 'float32' | 'bfloat16'
  /** The tokenizer of the model's folder. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
  tokenizer(): Promise<Tokenizer>
  /**
   * The next-token logits at every position, float32 [batch, sequence, vocabulary].
   * `ids`: token ids, sequences of equal length. Throws INVALID_OPTION.
   */
  logits(ids: readonly (readonly number[])[]): Promise<Logits>
  /**
   * Continues a prompt: the text comes in pieces as it is made, and its `result` at the end. It ends at a token or a string that ends
   * texts, after `maxTokens`, or at the end of the model's context.
   *
   * Reading it throws INVALID_OPTION (also for an empty prompt, or one that fills the context), FILE_NOT_FOUND (no tokenizer, no chat
   * template), INVALID_CHECKPOINT, INVALID_TEXT, NON_FINITE, OUT_OF_MEMORY, ABORTED.
   */
  generate(prompt: Prompt, options?: GenerateOptions): TextGeneration
  /**
   * Writes the model as it is, with all that was pruned or trained in memory, to a new folder, in the source's layout and dtypes, with
   * its config and tokenizer. The folder appears complete or not at all, and the model uses it from then on.
   *
   * Throws INVALID_OPTION, OUTPUT_EXISTS, WRITE_FAILED, ABORTED.
   */
  save(folder: PathOrUrl, options?: SaveOptions): Promise<void>
  /**
   * Frees native memory and threads. Jobs that use the model stop first and reject with ABORTED. The model cannot be used
   * afterwards.
   */
  dispose(): Promise<void>
  /** Does what `dispose` does, at the end of the scope of `await using model = await loadModel(…)`. */
  [Symbol.asyncDispose](): Promise<void>
}

/** How a model is saved. */
export interface SaveOptions {
  /** Whether the folder is replaced if it is a model folder or empty. Default false. */
  force?: boolean
  /** The form of the weights: 'dense' (default), every value, as other programs read it, or 'bitmask', without the zeros, as `pack` has it. */
  encoding?: 'dense' | 'bitmask'
  /** A signal that stops the work (ABORTED). */
  signal?: AbortSignal
}

const saveOptions = z.strictObject({
  force: z.boolean().default(false),
  encoding: z.enum(['dense', 'bitmask']).default('dense'),
  signal: z.instanceof(AbortSignal).optional(),
})

/** Continues a prompt: `model.generate(prompt, options)`. */
export function generate(model: Model, prompt: Prompt, options: GenerateOptions = {}): TextGeneration {
  return startGeneration(engineOf(model, 'generate'), prompt, options)
}

const engines = new WeakMap<Model, Engine>()

/**
 * The engine behind a model. Throws INVALID_OPTION for what loadModel has not made, and for a model that has been disposed of;
 * `subject` is the function that was called.
 *
 * @internal
 */
export function engineOf(model: Model, subject = 'sparsegpt'): Engine {
  const engine = engines.get(model)
  if (!engine) {
    const message = `${subject}: the first argument must be a model that loadModel has returned (await loadModel(…))`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  requireAlive(engine, subject)
  return engine
}

function requireAlive(engine: Engine, subject: string): void {
  if (!engine.disposed) return
  throw new SparseGptError(
    'INVALID_OPTION',
    `${subject}: the model ${engine.name} has been disposed of: load it again`,
  )
}

/**
 * Loads a model from a folder in Hugging Face layout (config.json, safetensors or .bin weights, tokenizer.json), or from
 * the hub: 'org/name' or 'org/name@revision' is downloaded into the cache that Hugging Face's tools share, unless it is
 * there already. HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_HUB_CACHE hold as for those tools. Weights are
 * mapped, not read.
 *
 * Throws FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_CHECKPOINT (damaged or contradictory files), UNSUPPORTED_MODEL,
 * INVALID_OPTION, WRITE_FAILED (the cache), ABORTED, DEVICE_UNAVAILABLE.
 */
export async function loadModel(pathOrHubId: PathOrUrl, options: LoadOptions = {}): Promise<Model> {
  const o = parseOptions(loadOptions, options, 'loadModel')
  const { folder, name } = await resolveModel(pathOrHubId, o)
  return modelOf(await openEngine(folder, name, () => new Device(o.device, o.threads), o.dtype))
}

/**
 * Opens the model in a folder; the device that `open` makes belongs to the engine from then on. Throws FILE_NOT_FOUND,
 * INVALID_CHECKPOINT, UNSUPPORTED_MODEL.
 */
async function openEngine(
  folder: string,
  name: string,
  open: () => Device,
  dtype: 'float32' | 'bfloat16',
): Promise<Engine> {
  const checkpoint = await openCheckpoint(folder)
  const family = familyOf(checkpoint.config)
  checkTensors(family, checkpoint)
  const device = open()
  try {
    const weights = new Weights(device, checkpoint, dtype)
    return new Engine(device, family.build(checkpoint.config, weights), weights, checkpoint, name)
  } catch (error) {
    await device.close()
    throw error
  }
}

/**
 * The engine of another model on the device of `engine`, so that the two can compute together; its weights are the caller's to
 * dispose of, the device stays with `engine`. Throws as loadModel does.
 *
 * @internal
 */
export async function openBeside(
  engine: Engine,
  pathOrHubId: string,
  options: Pick<LoadOptions, 'onDownload' | 'signal'>,
): Promise<Engine> {
  const { folder, name } = await resolveModel(pathOrHubId, options)
  return openEngine(folder, name, () => engine.device, engine.weights.dtype)
}

/**
 * Opens the dense model beside `engine`, that of a model that was or will be pruned; see openBeside. Throws as loadModel does, and
 * INVALID_OPTION unless both are of one family and shape.
 *
 * @internal
 */
export async function openDense(
  engine: Engine,
  pathOrHubId: string,
  caller: 'prune' | 'distill' | 'perplexity',
  { onDownload, signal }: { [Name in 'onDownload' | 'signal']?: LoadOptions[Name] | undefined },
): Promise<Engine> {
  const options = { ...(onDownload && { onDownload }), ...(signal && { signal }) }
  const dense = await openBeside(engine, pathOrHubId, options)
  try {
    requireAlike(engine, dense, caller)
    return dense
  } catch (error) {
    dense.weights.dispose()
    throw error
  }
}

/** Throws INVALID_OPTION unless both models are of one family and shape. */
function requireAlike(engine: Engine, dense: Engine, caller: 'prune' | 'distill' | 'perplexity'): void {
  const measures = ({ vocabularySize, weights, architecture: { hiddenSize, blockCount } }: Engine) =>
    `model_type "${String(weights.config['model_type'])}", a vocabulary of ${vocabularySize} entries, hidden size ${hiddenSize} and ${blockCount} blocks`
  const [ours, theirs] = [measures(engine), measures(dense)]
  if (ours === theirs) return
  const option = caller === 'perplexity' ? 'against' : 'dense'
  const message = `${caller}: option ${option}: ${dense.name} has ${theirs}, the pruned one ${ours}: give the model that was pruned`
  throw new SparseGptError('INVALID_OPTION', message)
}

function modelOf(engine: Engine): Model {
  const model: Model = {
    name: engine.name,
    get folder() {
      return engine.folder
    },
    device: engine.device.name,
    dtype: engine.weights.dtype,
    tokenizer: () => engine.tokenizer(),
    logits: async (ids) => {
      requireAlive(engine, 'logits')
      return engine.job(undefined, (signal) => logits(engine, ids, signal))
    },
    generate: (prompt, options) => generate(model, prompt, options),
    save: async (folder, options = {}) => {
      requireAlive(engine, 'save')
      const { signal, ...o } = parseOptions(saveOptions, options, 'save')
      const out = pathOf(folder, 'save: the folder')
      const going = (stop: AbortSignal) => () => abortable(stop)
      return engine.job(signal, (stop) => saveModel(engine, out, o, going(stop), going(stop)))
    },
    dispose: () => engine.dispose(),
    [Symbol.asyncDispose]: () => engine.dispose(),
  }
  engines.set(model, engine)
  return model
}

async function logits(
  engine: Engine,
  ids: readonly (readonly number[])[],
  signal: AbortSignal,
): Promise<Logits> {
  const isRow = (row: unknown): boolean => Array.isArray(row) || ArrayBuffer.isView(row)
  const areRows = (rows: unknown): boolean => Array.isArray(rows) && rows.every(isRow)
  const sequence = areRows(ids) ? (ids[0]?.length ?? 0) : 0
  if (sequence === 0 || ids.some((row) => row.length !== sequence)) {
    throw new SparseGptError(
      'INVALID_OPTION',
      'logits: ids must be one or more sequences of the same length >= 1',
    )
  }
  engine.checkSequence(sequence)
  const { vocabularySize, device } = engine
  const windows = ids.map((row) => tokenIds(row, vocabularySize))
  const owned: Tensor[] = []
  const [batch] = engine.embed([windows]) as [Batch]
  try {
    for (const [index, weights] of engine.blocks()) {
      abortable(signal)
      await engine.passBlock(index, weights, [batch])
    }
    const head = engine.head()
    const result = device.within(owned, () => head.logits(batch.hidden))
    head.dispose()
    const data = await device.readFloat32(result)
    return { data, shape: [ids.length, sequence, vocabularySize] }
  } finally {
    batch.hidden.dispose()
    for (const tensor of owned) tensor.dispose()
  }
}
