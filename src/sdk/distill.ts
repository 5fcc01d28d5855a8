import * as z from 'zod'
import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import { dense } from '../files/encodings/dense.js'
import { generateWindows } from '../generation/windows.js'
import type { JobIdentity } from '../files/journal.js'
import { OutputFolder } from '../files/output-folder.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import type { Engine } from '../models/engine.js'
import { parseOptions, path, type PathOrUrl } from '../options.js'
import { meanShare } from '../pruning/allocation/recipe.js'
import { FolderDestination, MemoryDestination } from '../pruning/destination.js'
import { jobIdentity } from '../pruning/job-identity.js'
import { selectLayers } from '../pruning/pipeline.js'
import type { LayerReport, PruneReport } from '../pruning/report.js'
import { JobRecord, hashInputs } from '../reporting/job-record.js'
import { allWindows, calibrationSource, calibrationWindows, type CalibrationSource } from '../text/source.js'
import {
  Distillation,
  type DistillationProgress,
  type DistillationSettings,
} from '../training/distillation.js'
import { distillationOptions, type DistillationOptions } from '../training/options.js'
import { SavedTraining, type DistillationLosses, type SavedState } from '../training/saved-training.js'
import { startJob, type Job, type Listeners } from './job.js'
import { engineOf, openDense, type Model } from './model.js'

/** The text that a pruned model is trained on: at most one source; without one the dense model generates it. */
export interface DistillationText extends CalibrationSource {
  /**
   * The number of windows that are drawn. Default: all of the text, one after the other (of the data set c4 256), and 128 of what the
   * dense model generates.
   */
  samples?: number
  /** The number of tokens of a window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** The seed of the choice and of the order of windows. Default 0. */
  seed?: number
}

export interface DistillOptions extends DistillationOptions {
  /** The dense model: its folder, or its id on the hub. */
  dense: PathOrUrl
  /** The text to train on. Default: what the dense model generates, at temperature 1, from the token on that texts begin with. */
  calibration?: DistillationText
  /** The folder for the trained model, which must not exist; without it the weights change in memory only. */
  out?: PathOrUrl
  /** Whether `out` is replaced if it is a model folder or empty, and what a stopped job has left of it removed. Default false. */
  force?: boolean
  /**
   * Whether a job that was stopped goes on behind the last step whose state it has saved: one to the same `out` with the same models,
   * text and options. The result is the one that an uninterrupted job has. Where nothing can be resumed the job starts from the
   * beginning. Default false.
   */
  resume?: boolean
  /** A function that is called while the dense model is downloaded. */
  onDownload?: (progress: DownloadProgress) => void
  /** A function that is told the share of the text, in (0, 1], that the dense model has generated. */
  onGenerate?: (fraction: number) => void
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

const schema = distillationOptions
  .extend({
    dense: path,
    calibration: calibrationSource
      .extend({
        samples: z.int().min(2).max(1_000_000).optional(),
        sequenceLength: z.int().min(1).optional(),
        seed: z.int().default(0),
      })
      .strict()
      .prefault({}),
    out: path.optional(),
    force: z.boolean().default(false),
    resume: z.boolean().default(false),
    onDownload: callback<DownloadProgress>(),
    onGenerate: callback<number>(),
    onProgress: callback<DistillationProgress>(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .superRefine(({ resume, out }, context) => {
    if (!resume || out !== undefined) return
    const message = 'needs out: what is trained in memory only cannot be resumed'
    context.addIssue({ code: 'custom', path: ['resume'], message })
  })

type Parsed = Omit<z.output<typeof schema>, 'onProgress'>

/**
 * Trains a pruned model to give the dense model's next-token distributions (Hinton et al. 2015, arXiv 1503.02531). Kept weights,
 * biases and norms are trained, zeros stay zero; embeddings and the head stay. With `out` the trained model appears there, complete
 * or not at all, and `student` uses it from then on. Such a job saves its state beside `out` on its way, which `resume` goes on with
 * when it has ended early.
 *
 * A loop over what it returns (`for await`) gets the progress as `onProgress` does.
 *
 * Throws INVALID_OPTION (also where the two models differ in their vocabulary), FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_TEXT,
 * OUTPUT_EXISTS, WRITE_FAILED, INVALID_CHECKPOINT, UNSUPPORTED_MODEL, OUT_OF_MEMORY, ABORTED.
 */
export function distill(student: Model, options: DistillOptions): Job<DistillReport, DistillationProgress> {
  const start = performance.now()
  return startJob(async (listeners) => {
    const engine = engineOf(student, 'distill')
    const { onProgress, ...o } = parseOptions(schema, options, 'distill')
    listeners.add(onProgress)
    return engine.job(o.signal, (signal) => distillModel(engine, { ...o, signal }, listeners, start, options))
  })
}

async function distillModel(
  engine: Engine,
  o: Parsed,
  listeners: Listeners<DistillationProgress>,
  start: number,
  given: DistillOptions,
): Promise<DistillReport> {
  const source = engine.folder
  // What decides the result must all be in files.
  const resumable = o.out !== undefined && !engine.weights.changed
  if (o.resume && !resumable) {
    const message =
      'distill: option resume: the model has been changed in memory, which cannot be resumed: load it anew'
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (o.out !== undefined) await OutputFolder.check(o.out, o)
  const teacher = await openDense(engine, o.dense, 'distill', o)
  try {
    const linears = layersOf(engine)
    const trained = linears.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
    const destination =
      o.out === undefined
        ? new MemoryDestination(engine)
        : await FolderDestination.create<SavedState>(engine, o.out, {
            force: o.force,
            resume: o.resume,
            encoding: dense,
            weights: linears.map(({ name }) => `${name}.weight`),
            // The state before it stays until a new one is whole.
            stateBytes: resumable ? 2 * 16 * trained : 0,
            denseModel: teacher.checkpoint,
          })
    try {
      const windows = await drawWindows(engine, teacher, o)
      let saved: SavedTraining | undefined
      const inputs = o.out === undefined ? {} : await hashInputs(engine, { dense: teacher, windows })
      const record = new JobRecord(engine, 'distill', { given, resolved: o }, inputs)
      if (destination instanceof FolderDestination && resumable) {
        await destination.begin(await identityOf(engine, teacher, o, windows))
        saved = new SavedTraining(engine.device, destination)
      }
      const settings = { ...o, seed: o.calibration.seed }
      const report = (progress: DistillationProgress) => {
        listeners.tell(progress)
        abortable(o.signal)
      }
      const { losses, layers } = await train(engine, teacher, windows, settings, destination, report, saved)
      abortable(o.signal)
      const achieved = meanShare(layers, ({ sparsity }) => sparsity)
      const { folder } = destination
      const resultNow = (): DistillReport => ({
        model: source,
        out: folder,
        method: 'distill',
        sparsity: { target: achieved, achieved },
        seconds: (performance.now() - start) / 1000,
        peakRssBytes: process.resourceUsage().maxRSS * 1024,
        layers,
        losses,
      })
      const ofFolder = destination instanceof FolderDestination ? destination : undefined
      const files = ofFolder && (await record.files(resultNow()))
      for (const [name, text] of files ?? []) ofFolder?.addFile(name, text)
      await destination.commit()
      const result = resultNow()
      if (ofFolder) await record.complete(ofFolder.folder, linears, result)
      return result
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
 *
 * @internal
 */
export async function train(
  engine: Engine,
  teacher: Engine,
  windows: readonly Int32Array[],
  settings: DistillationSettings,
  destination: Pick<FolderDestination, 'store' | 'storeParameter'>,
  report: (progress: DistillationProgress) => void,
  saved?: SavedTraining,
): Promise<{ losses: DistillationLosses; layers: LayerReport[] }> {
  const { device } = engine
  const distillation = new Distillation(engine, teacher, settings)
  try {
    const losses = await distillation.run(windows, report, saved)
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

/** What decides the job's result, for what resumes it. */
function identityOf(
  engine: Engine,
  teacher: Engine,
  o: Parsed,
  windows: readonly Int32Array[],
): Promise<JobIdentity> {
  // The dense model and the text are known by their contents, but for the seed, which the order of the windows depends on too.
  const { dense, calibration, out, force, resume, ...other } = o
  const { onDownload, onGenerate, signal, ...deciding } = other
  const options = { method: 'distill', ...deciding, seed: calibration.seed }
  return jobIdentity(engine, options, windows, undefined, teacher)
}

/**
 * The linear layers of all blocks under their checkpoint names.
 *
 * @internal
 */
export const layersOf = ({ architecture }: Engine) => selectLayers(architecture, { minBlock: 0 }).flat()

async function drawWindows(engine: Engine, teacher: Engine, o: Parsed): Promise<Int32Array[]> {
  const { samples, seed, sequenceLength: wanted, ...source } = o.calibration
  const longest = source.windows?.reduce((most, { length }) => Math.max(most, length), 1)
  const options = { seed, sequenceLength: engine.sequenceLength(longest ?? wanted), signal: o.signal }
  const { textField, chat, onDownload, onEncode, ...from } = source
  if (Object.values(from).every((given) => given === undefined)) {
    const ofRows = textField === undefined ? chat && 'chat' : 'textField'
    if (ofRows) {
      const message = `distill: option ${ofRows}: is of a file with rows: give file too`
      throw new SparseGptError('INVALID_OPTION', message)
    }
    return generateText(teacher, samples ?? 128, options, o.onGenerate)
  }
  return samples === undefined
    ? trainingWindows(engine, source, options)
    : trainable((await calibrationWindows(engine, source, { ...options, samples })).windows, options)
}

/** Windows of text that the dense model makes up. Throws as generateWindows does. */
function generateText(
  teacher: Engine,
  count: number,
  { seed, sequenceLength, signal }: { seed: number; sequenceLength: number; signal: AbortSignal | undefined },
  onProgress: ((fraction: number) => void) | undefined,
): Promise<Int32Array[]> {
  const { blockCount, hiddenSize } = teacher.architecture
  // The more at once the faster, as far as their keys and values stay within 1 GiB.
  const most = Math.floor(2 ** 30 / (2 * 4 * blockCount * hiddenSize * sequenceLength))
  const batch = Math.max(1, Math.min(64, most))
  const sampling = { temperature: 1, seed, batch }
  return generateWindows(teacher, { count, length: sequenceLength, ...sampling, signal, onProgress })
}

/**
 * All windows of a text to train on. Throws as allWindows does, INVALID_TEXT too where there is one only.
 *
 * @internal
 */
export const trainingWindows = async (...[engine, source, options]: Parameters<typeof allWindows>) =>
  trainable(await allWindows(engine, source, options), options)

function trainable(windows: Int32Array[], { sequenceLength }: { sequenceLength: number }): Int32Array[] {
  if (windows.some(({ length }) => length !== windows[0]!.length)) {
    const message = 'distill: option windows: they must be of one length to train on: give windows that are'
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (windows.length > 1) return windows
  const message = `distill: the text has one window of ${sequenceLength} tokens; one to train on and one to judge by are needed: give a longer text or a shorter sequenceLength`
  throw new SparseGptError('INVALID_TEXT', message)
}
