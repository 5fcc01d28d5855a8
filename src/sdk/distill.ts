import * as z from 'zod'
import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import { dense } from '../files/encodings/dense.js'
import { OutputFolder } from '../files/output-folder.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import type { Engine } from '../models/engine.js'
import { parseOptions, path } from '../options.js'
import { FolderDestination, MemoryDestination } from '../pruning/destination.js'
import { selectLayers } from '../pruning/pipeline.js'
import type { LayerReport, PruneReport } from '../pruning/report.js'
import { allWindows, calibrationWindows, textSource, type TextSource } from '../text/source.js'
import {
  Distillation,
  type DistillationLosses,
  type DistillationProgress,
  type DistillationSettings,
} from '../training/distillation.js'
import { distillationOptions, type DistillationOptions } from '../training/options.js'
import { engineOf, openBeside, type Model } from './model.js'

/** The text that a pruned model is trained on. */
export interface DistillationText extends TextSource {
  /** The number of windows that are drawn. Default: all of the text, one after the other (of the data set c4 256). */
  samples?: number
  /** The number of tokens of a window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** The seed of the choice and of the order of windows. Default 0. */
  seed?: number
}

export interface DistillOptions extends DistillationOptions {
  /** The dense model: its folder, or its id on the hub. */
  dense: string
  /** The text to train on. */
  calibration: DistillationText
  /** The folder for the trained model, which must not exist; without it the weights change in memory only. */
  out?: string
  /** Whether `out` is replaced if it is a model folder or empty. Default false. */
  force?: boolean
  /** A function that is called while the dense model is downloaded. */
  onDownload?: (progress: DownloadProgress) => void
  /** A function that is told of every step. */
  onProgress?: (progress: DistillationProgress) => void
  /** A signal that stops the work (ABORTED). */
  signal?: AbortSignal
}

/** The result of a distillation. */
export interface DistillReport extends Omit<PruneReport, 'method' | 'phases'> {
  method: 'distill'
  /** The divergences KL(dense ‖ pruned), in nats per token. */
  losses: DistillationLosses
}

const callback = <T>() => z.custom<(value: T) => void>((value) => typeof value === 'function').optional()

const schema = distillationOptions.extend({
  dense: z.string().min(1),
  calibration: textSource
    .extend({
      samples: z.int().min(2).max(1_000_000).optional(),
      sequenceLength: z.int().min(1).optional(),
      seed: z.int().default(0),
    })
    .strict(),
  out: path.optional(),
  force: z.boolean().default(false),
  onDownload: callback<DownloadProgress>(),
  onProgress: callback<DistillationProgress>(),
  signal: z.instanceof(AbortSignal).optional(),
})

type Parsed = z.output<typeof schema>

/**
 * Trains a pruned model to give the dense model's next-token distributions (Hinton et al. 2015, arXiv 1503.02531). Kept weights,
 * biases and norms are trained, zeros stay zero; embeddings and the head stay. With `out` the trained model appears there, complete
 * or not at all, and `student` uses it from then on.
 *
 * Throws INVALID_OPTION (also where the two models differ in their vocabulary), FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_TEXT,
 * OUTPUT_EXISTS, WRITE_FAILED, INVALID_CHECKPOINT, UNSUPPORTED_MODEL, OUT_OF_MEMORY, ABORTED.
 */
export async function distill(student: Model, options: DistillOptions): Promise<DistillReport> {
  const start = performance.now()
  const engine = engineOf(student, 'distill')
  const o = parseOptions(schema, options, 'distill')
  return engine.job(o.signal, (signal) => distillModel(engine, { ...o, signal }, start))
}

async function distillModel(engine: Engine, o: Parsed, start: number): Promise<DistillReport> {
  const source = engine.folder
  if (o.out !== undefined) await OutputFolder.check(o.out, { force: o.force, resume: false })
  const teacher = await openBeside(engine, o.dense, {
    ...(o.onDownload && { onDownload: o.onDownload }),
    ...(o.signal && { signal: o.signal }),
  })
  try {
    requireAlike(engine, teacher, 'distill')
    const destination =
      o.out === undefined
        ? new MemoryDestination(engine)
        : await FolderDestination.create(engine, o.out, {
            force: o.force,
            encoding: dense,
            weights: layersOf(engine).map(({ name }) => `${name}.weight`),
          })
    try {
      const windows = await drawWindows(engine, o)
      const settings = { ...o, seed: o.calibration.seed }
      const { losses, layers } = await train(engine, teacher, windows, settings, destination, (progress) => {
        o.onProgress?.(progress)
        abortable(o.signal)
      })
      abortable(o.signal)
      await destination.commit()
      const count = layers.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
      const achieved =
        layers.reduce((sum, { rows, columns, sparsity }) => sum + sparsity * rows * columns, 0) / count
      return {
        model: source,
        out: destination.folder,
        method: 'distill',
        sparsity: { target: achieved, achieved },
        seconds: (performance.now() - start) / 1000,
        peakRssBytes: process.resourceUsage().maxRSS * 1024,
        layers,
        losses,
      }
    } catch (error) {
      throw await destination.abort(error)
    }
  } finally {
    teacher.weights.dispose()
  }
}

/**
 * Trains `engine` to be like `teacher`, which is on the same device, and hands every trained tensor to `destination`. `report` is called
 * after every step and may throw. The losses come with what became of each linear layer.
 */
export async function train(
  engine: Engine,
  teacher: Engine,
  windows: readonly Int32Array[],
  settings: DistillationSettings,
  destination: Pick<FolderDestination, 'store' | 'storeParameter'>,
  report: (progress: DistillationProgress) => void,
): Promise<{ losses: DistillationLosses; layers: LayerReport[] }> {
  const { device } = engine
  const distillation = new Distillation(engine, teacher, settings)
  try {
    const losses = await distillation.run(windows, report)
    const specs = new Map(layersOf(engine).map((layer) => [`${layer.name}.weight`, layer]))
    const layers: LayerReport[] = []
    await distillation.settle(async (name, tensor, isMatrix) => {
      if (!isMatrix) return destination.storeParameter(name, tensor)
      const counted = device.within([], () => device.countZeros(tensor))
      const [zeros = 0] = await device.read(counted)
      counted.dispose()
      const { rows, columns, name: layer } = specs.get(name)!
      layers.push({ name: layer, rows, columns, sparsity: zeros / (rows * columns), loss: null, seconds: 0 })
      return destination.store(name, tensor)
    })
    await device.synchronize()
    return { losses, layers }
  } finally {
    distillation.dispose()
    await device.synchronize().catch(() => undefined)
  }
}

/** The linear layers of all blocks under their checkpoint names. */
export const layersOf = ({ architecture }: Engine) => selectLayers(architecture, { minBlock: 0 }).flat()

/** Throws INVALID_OPTION unless both models are of one family and shape. */
export function requireAlike(engine: Engine, dense: Engine, caller: 'prune' | 'distill'): void {
  const measures = ({ vocabularySize, weights, architecture: { hiddenSize, blockCount } }: Engine) =>
    `model_type "${String(weights.config['model_type'])}", a vocabulary of ${vocabularySize} entries, hidden size ${hiddenSize} and ${blockCount} blocks`
  const [ours, theirs] = [measures(engine), measures(dense)]
  if (ours === theirs) return
  const message = `${caller}: option dense: ${dense.name} has ${theirs}, the model to train ${ours}: give the model that was pruned`
  throw new SparseGptError('INVALID_OPTION', message)
}

async function drawWindows(engine: Engine, o: Parsed): Promise<Int32Array[]> {
  const { samples, seed, sequenceLength: wanted, ...source } = o.calibration
  const options = { seed, sequenceLength: engine.sequenceLength(wanted), signal: o.signal }
  return samples === undefined
    ? trainingWindows(engine, source, options)
    : trainable((await calibrationWindows(engine, source, { ...options, samples })).windows, options)
}

/** All windows of a text to train on. Throws as allWindows does, INVALID_TEXT too where there is one only. */
export const trainingWindows = async (...[engine, source, options]: Parameters<typeof allWindows>) =>
  trainable(await allWindows(engine, source, options), options)

function trainable(windows: Int32Array[], { sequenceLength }: { sequenceLength: number }): Int32Array[] {
  if (windows.length > 1) return windows
  const message = `distill: the text has one window of ${sequenceLength} tokens; one to train on and one to judge by are needed: give a longer text or a shorter sequenceLength`
  throw new SparseGptError('INVALID_TEXT', message)
}
