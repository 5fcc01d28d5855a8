import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import * as z from 'zod'
import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import { packed, type Checkpoint } from '../files/checkpoint.js'
import { isPacked } from '../files/safetensors.js'
import type { EncodingName } from '../files/encodings/registry.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import type { Engine } from '../models/engine.js'
import { parseOptions, path, type PathOrUrl } from '../options.js'
import { startJob, type Job } from './job.js'
import { engineOf, loadModel, type Model } from './model.js'
import { saveModel } from './save.js'

/** Where a packed or unpacked model goes. */
export interface PackOptions {
  /** The folder for the result. */
  out: PathOrUrl
  /** Whether `out` is replaced if it is a model folder or empty. Default false. */
  force?: boolean
  /** A function that is called while a model is downloaded from the hub. */
  onDownload?: (progress: DownloadProgress) => void
  /** A function that is told how far the work has come. */
  onProgress?: (progress: PackProgress) => void
  /** A signal that stops the work (ABORTED). */
  signal?: AbortSignal
}

/** How far packing or unpacking has come. */
export interface PackProgress {
  /** The share of the matrices that are done. */
  fraction: number
  /** The name of the matrix that was done last. */
  weight: string
}

/** What packing or unpacking has done. */
export interface PackReport {
  /** The absolute path of the source's folder. */
  model: string
  /** The absolute path of the new folder. */
  out: string
  /** The number of matrices that are packed in the source and in the result. */
  packed: { before: number; after: number }
  /** The sizes of the weight files of the source and of the result. */
  bytes: { before: number; after: number }
  seconds: number
}

const schema = z.strictObject({
  out: path,
  force: z.boolean().default(false),
  onDownload: z
    .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function')
    .optional(),
  onProgress: z.custom<(progress: PackProgress) => void>((value) => typeof value === 'function').optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/**
 * Writes a model that was pruned with its zeros left out: of every linear layer's matrix that becomes smaller by it the other values and a
 * bit for each element, all else as it is. Nothing is lost: `unpack` gives every tensor back as it was, negative zeros included. The files
 * are called packed.safetensors, since only this package reads them. `model`: a loaded model, which uses the new folder from then on, or a
 * folder or hub id as for loadModel.
 *
 * Throws INVALID_OPTION (a model that is packed already, or of which nothing would become smaller), OUTPUT_EXISTS, WRITE_FAILED, ABORTED,
 * and what loadModel throws.
 */
export function pack(model: Model | PathOrUrl, options: PackOptions): Job<PackReport, PackProgress> {
  return convert('pack', model, options)
}

/**
 * Writes a packed model with every value, as other programs read it: the reverse of `pack`, with the same arguments.
 *
 * Throws INVALID_OPTION (a model that is not packed), OUTPUT_EXISTS, WRITE_FAILED, ABORTED, INVALID_CHECKPOINT (parts of a packed tensor
 * that contradict each other), and what loadModel throws.
 */
export function unpack(model: Model | PathOrUrl, options: PackOptions): Job<PackReport, PackProgress> {
  return convert('unpack', model, options)
}

type Direction = 'pack' | 'unpack'
type Parsed = z.output<typeof schema>

const convert = (direction: Direction, model: Model | PathOrUrl, options: PackOptions) =>
  startJob<PackReport, PackProgress>(async (listeners) => {
    const o = parseOptions(schema, options, direction)
    listeners.add(o.onProgress)
    return convertAny(direction, model, { ...o, onProgress: listeners.tell })
  })

async function convertAny(direction: Direction, model: Model | PathOrUrl, o: Parsed): Promise<PackReport> {
  if (typeof model !== 'string' && !(model instanceof URL)) return convertModel(direction, model, o)
  const { signal, onDownload } = o
  const opened = await loadModel(model, {
    device: 'cpu',
    ...(onDownload && { onDownload }),
    ...(signal && { signal }),
  })
  try {
    return await convertModel(direction, opened, o)
  } finally {
    await opened.dispose()
  }
}

async function convertModel(direction: Direction, model: Model, o: Parsed): Promise<PackReport> {
  const engine = engineOf(model, direction)
  checkSource(direction, engine)
  return engine.job(o.signal, (signal) =>
    write(engine, direction === 'pack' ? 'bitmask' : 'dense', { ...o, signal }),
  )
}

function checkSource(direction: Direction, { checkpoint, folder }: Engine): void {
  const isPackedModel = checkpoint.format === packed || packedCount(checkpoint) > 0
  if (isPackedModel === (direction === 'unpack')) return
  const { index, format } = checkpoint
  const state = isPackedModel
    ? `packed already (${index ?? format.single})`
    : `not packed: it has no ${packed.single}`
  throw new SparseGptError('INVALID_OPTION', `${direction}: ${folder} is ${state}`)
}

async function write(engine: Engine, encoding: EncodingName, o: Parsed): Promise<PackReport> {
  const start = performance.now()
  const source = engine.checkpoint
  const { out, force, signal, onProgress } = o
  const step = (weight: string, fraction: number) => {
    abortable(signal)
    onProgress?.({ fraction, weight })
  }
  const check = (encodedCount: number) => {
    if (encoding === 'dense' || encodedCount > 0) return
    const message = `pack: ${source.folder} has no linear layer that would become smaller: a bit for every element takes 1/16 of bfloat16 and 1/32 of float32, so there must be more zeros than that: prune the model first`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  await saveModel(engine, out, { force, encoding }, step, check)
  return {
    model: source.folder,
    out: engine.folder,
    packed: { before: packedCount(source), after: packedCount(engine.checkpoint) },
    bytes: { before: await fileBytes(source), after: await fileBytes(engine.checkpoint) },
    seconds: (performance.now() - start) / 1000,
  }
}

const packedCount = ({ tensors }: Checkpoint) => [...tensors.values()].filter(isPacked).length

/**
 * The size of a checkpoint's weight files, in bytes.
 *
 * @internal
 */
export async function fileBytes({ folder, shards }: Checkpoint): Promise<number> {
  const sizes = await Promise.all(shards.map(async ({ file }) => (await stat(join(folder, file))).size))
  return sizes.reduce((a, b) => a + b, 0)
}
