import * as z from 'zod'
import { abortable } from '../abort.js'
import { calibrationSource, calibrationWindows, type CalibrationSource } from '../text/source.js'
import { requireWritable, saveTokens } from '../text/token-file.js'
import type { Grid } from '../files/coded.js'
import { encodings, type EncodingName } from '../files/encodings/registry.js'
import type { JobIdentity } from '../files/journal.js'
import { MaskFile } from '../files/mask-file.js'
import { packQuantizedBits } from '../files/pack-quantized.js'
import { OutputFolder } from '../files/output-folder.js'
import { SparseGptError } from '../errors.js'
import type { Engine, Offload } from '../models/engine.js'
import { storedShape, type LinearSpec } from '../models/specs.js'
import { Communicator, endingAll } from '../native/communicator.js'
import type { Work } from '../native/device.js'
import { jobNeeds, planPruning, type PlannedJob } from '../planning/planned-job.js'
import { tokenMatrices } from '../planning/required-tensors.js'
import { targetsByBlock } from '../pruning/allocation/allocation.js'
import { isMeasured } from '../pruning/allocation/names.js'
import { meanShare, readAllocation, type Allocation } from '../pruning/allocation/recipe.js'
import { FolderDestination, MemoryDestination } from '../pruning/destination.js'
import { jobIdentity } from '../pruning/job-identity.js'
import { parseOptions, path, type PathOrUrl } from '../options.js'
import { sizeText } from '../sizes.js'
import { layersOf, train, trainingWindows } from './distill.js'
import { startJob, type Job, type Listeners } from './job.js'
import { engineOf, openBeside, openDense, type Model } from './model.js'
import { timed, type TimedPlan } from './plan.js'
import {
  checkSelection,
  defaultAlpha,
  memorySize,
  modelPruningOptions,
  samples,
  ofQuality,
  withQuality,
  type PruningGoal,
  type PruningSettings,
} from '../pruning/options.js'
import { needsDenseStream, needsInputs } from '../pruning/methods/methods.js'
import { phaseSeconds } from '../pruning/phases.js'
import { blocksToPass, pruneBlocks, selectLayers } from '../pruning/pipeline.js'
import { ProgressMeter } from '../pruning/progress.js'
import { FollowedDestination, Ranks } from '../pruning/ranks.js'
import type { LayerReport, PruneProgress, PruneReport } from '../pruning/report.js'
import { hashInputs, JobRecord } from '../reporting/job-record.js'
import type { InputHashes } from '../reporting/report.js'
import { inputHashes, requireInputs } from '../reporting/inputs.js'
import type { DistillationProgress } from '../training/distillation.js'
import type { DistillationLosses } from '../training/saved-training.js'

/** The calibration text, and what is drawn from it. Windows that are given decide their number and lengths themselves. */
export interface CalibrationOptions extends CalibrationSource {
  /** The number of windows drawn from the text. Default 128. */
  samples?: number
  /** The number of tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** The seed of Python's generator, which draws the windows. Default 0. */
  seed?: number
  /** A .safetensors file to save the encoded text (of C4 the windows) to; it can be given as `file` next time. */
  saveTokens?: PathOrUrl
}

/** What is pruned, how, with which text, and where the result goes. */
export type PruneOptions = PruneSettings & (UnmaskedGoal | MaskGoal) & (Calibrated | Uncalibrated)

type UnmaskedGoal = PruningGoal & { mask?: never }

interface MaskGoal {
  /** A safetensors file of masks (BOOL, U8 or I8; 1 = prune), named and shaped as the weights to prune. */
  mask: PathOrUrl
  allocation?: 'uniform'
  sparsity?: never
  pattern?: never
  schedule?: never
}

interface Calibrated {
  /** The text whose activations the pruning preserves, and that `distill` trains on. */
  calibration: CalibrationOptions
}

/** Magnitude pruning looks at the weights alone, unless something else is asked for that looks at inputs. */
interface Uncalibrated {
  method: 'magnitude'
  calibration?: never
  quality?: 'fast'
  refit?: false
  target?: 'own'
  reconstruct?: false
  distill?: false
}

interface PruneSettings extends PruningSettings {
  /**
   * The dense model that `target`, `reconstruct` and `distill` are to come near: its folder, or its id on the hub. Default: the model
   * itself, as its files have it. To be given for a model that was pruned before.
   */
  dense?: PathOrUrl
  /** The folder for the pruned model, in the source's layout and dtypes. Without it the model is pruned in memory only. */
  out?: PathOrUrl
  /** Whether `out` is replaced if it is a model folder or empty, and what a stopped job has left of it removed. Default false. */
  force?: boolean
  /**
   * The form in which `out` holds the pruned weights. Default 'dense': every value, as other programs read it. 'bitmask': without the
   * zeros, and with `bits` as codes of so many bits, which only this package reads. 'compressed-tensors': as codes of 4 or 8 `bits`, zeros
   * included, which transformers and vLLM read.
   */
  encoding?: EncodingName
  /**
   * The number of bits, 8, that the output head and the token embedding are rounded to in `out`, each value to the nearest on a grid for
   * each row and group of 128 columns; with encoding 'bitmask' only. Default: they stay as they are.
   */
  headBits?: 8
  /**
   * Whether a job that was stopped goes on where it had come, the block under way excepted: one to the same `out` with the same
   * model, text and options. The result is the one that an uninterrupted job has. Where nothing can be resumed the job starts
   * from the beginning. Default false.
   */
  resume?: boolean
  /** Whether the report tells where the time goes (phases). It costs a little on a GPU, which then waits after every operation. */
  profile?: boolean
  /**
   * The folder for a file that takes the activations while they wait (samples · sequence length · hidden size of them): always, or
   * with `memory` only when they do not fit. On a GPU they may also wait in the host's memory: see `memory`.
   */
  offload?: PathOrUrl
  /**
   * The limit of what the job may take of the process's memory, or on a GPU of the GPU's: bytes, or '16GB'. A job that would take more is
   * refused before anything is read, unless its activations can wait elsewhere: in `offload`, or from a GPU in the host's
   * memory. Default: no limit; on a GPU 90 % of its memory.
   */
  memory?: number | string
  /**
   * The ranks that work on the job together, each of which calls this function with the same model and options: see
   * docs/many-machines.md. Rank 0 alone reads the text and writes `out`, in a folder that all see. Default: this process alone.
   */
  communicator?: Communicator
  /**
   * The hashes that what is read must have, as those of a report (readRecipe): a job with other inputs is refused. Default: anything
   * is read.
   */
  inputs?: InputHashes
  /** A function that is told how far the work has come. */
  onProgress?: (progress: PruneProgress) => void
  /** A signal that stops the work (ABORTED). */
  signal?: AbortSignal
}

/** What needs the calibration text, for messages; undefined where nothing does. */
function readerOfText(o: z.output<typeof modelPruningOptions>): string | undefined {
  if (isMeasured(o.allocation)) return `allocation "${o.allocation}"`
  if (o.distill) return 'distill'
  if (needsInputs({ method: o.method, refit: false })) return `method "${o.method}"`
  if (o.reconstruct) return 'reconstruct'
  if (o.refit) return 'refit'
  return o.target === 'dense' ? 'target "dense"' : undefined
}

const schema = modelPruningOptions
  .extend({
    mask: path.optional(),
    dense: path.optional(),
    calibration: calibrationSource
      .extend({
        samples,
        sequenceLength: z.int().min(1).optional(),
        seed: z.int().default(0),
        saveTokens: path.pipe(z.string().endsWith('.safetensors')).optional(),
      })
      .strict()
      .transform(({ windows, ...calibration }) => {
        if (!windows) return calibration
        const longest = windows.reduce((most, { length }) => Math.max(most, length), 1)
        return { ...calibration, windows, samples: windows.length, sequenceLength: longest }
      })
      .optional(),
    out: path.optional(),
    force: z.boolean().default(false),
    encoding: z.enum(Object.keys(encodings) as EncodingName[]).default('dense'),
    headBits: z.literal(8, { error: 'must be 8' }).optional(),
    resume: z.boolean().default(false),
    profile: z.boolean().default(false),
    offload: path.optional(),
    memory: memorySize.optional(),
    communicator: z.instanceof(Communicator).optional(),
    inputs: inputHashes.optional(),
    onProgress: z
      .custom<(progress: PruneProgress) => void>((value) => typeof value === 'function')
      .optional(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .strict()
  .superRefine((options, context) => {
    checkSelection(options, context)
    checkEncoding(options, context)
    if (options.resume && options.out === undefined) {
      const message = 'needs out: what is pruned in memory only cannot be resumed'
      context.addIssue({ code: 'custom', path: ['resume'], message })
    }
    if (options.resume && stepsOf(options).length > 1) {
      const message =
        'cannot be combined with schedule: prune step by step, each from the folder of the one before, and give dense'
      context.addIssue({ code: 'custom', path: ['resume'], message })
    }
    if (options.resume && options.distill) {
      const message = `cannot be combined with distill: prune first, then distill, which can be resumed too${ofQuality(options, 'distill')}`
      context.addIssue({ code: 'custom', path: ['resume'], message })
    }
    if (options.dense !== undefined && !needsDenseStream(options) && !options.distill) {
      const message = 'has no use: give target "dense", reconstruct or distill too'
      context.addIssue({ code: 'custom', path: ['dense'], message })
    }
    if (options.distill && (options.communicator?.size ?? 1) > 1) {
      const message = `cannot be combined with communicator: several ranks do not train the whole model${ofQuality(options, 'distill')}`
      context.addIssue({ code: 'custom', path: ['distill'], message })
    }
    const reader = options.calibration ? undefined : readerOfText(options)
    if (reader !== undefined) {
      const message = `is needed for ${reader}: { file }, { tokens } or another source of text`
      context.addIssue({ code: 'custom', path: ['calibration'], message })
    }
  })

/** What the schema checks of the form of the output. */
function checkEncoding(
  o: {
    encoding: EncodingName
    bits?: number | undefined
    headBits?: 8 | undefined
    out?: string | undefined
  },
  context: z.RefinementCtx,
): void {
  const refuse = (option: string, message: string) =>
    context.addIssue({ code: 'custom', path: [option], message })
  const { bits } = o
  if (o.encoding === 'compressed-tensors' && (bits === undefined || !packQuantizedBits.includes(bits)))
    refuse('encoding', `compressed-tensors needs bits 4 or 8, not ${bits ?? 'float weights'}`)
  if (o.headBits === undefined) return
  if (o.out === undefined) refuse('headBits', 'needs out: it is of the weight files')
  if (o.encoding !== 'bitmask')
    refuse('headBits', 'needs encoding "bitmask": other forms have no codes for it')
}

/**
 * Prunes a model block by block with SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774), Wanda or by magnitude. With
 * `out` the pruned model appears there, complete or not at all, and `model` uses it from then on. When such a job ends early
 * and has finished a block, a folder stays beside `out` that `resume` goes on with.
 *
 * A loop over what it returns (`for await`) gets the progress as `onProgress` does.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_TEXT (calibration text shorter than a window), NON_FINITE,
 * NOT_POSITIVE_DEFINITE, OUTPUT_EXISTS, WRITE_FAILED, INVALID_CHECKPOINT, OUT_OF_MEMORY, ABORTED.
 */
export function prune(model: Model, options: PruneOptions): Job<PruneReport, PruneProgress> {
  const start = performance.now()
  return startJob(async (listeners) => {
    const engine = engineOf(model, 'prune')
    const { onProgress, ...o } = parseOptions(z.preprocess(withQuality, schema), options, 'prune')
    listeners.add(onProgress)
    const job = engine.job(o.signal, async (signal) => {
      const allocation = await readAllocation(o.allocation)
      return pruneModel(engine, { ...o, signal, allocation }, listeners, start, options)
    })
    return endingAll(o.communicator, job)
  })
}

/** The shares of zeros to prune to, one after the other; undefined for what a pattern or a mask says. */
const stepsOf = (o: { schedule?: readonly number[] | undefined; sparsity?: number | undefined }) =>
  o.schedule ?? [o.sparsity]

async function pruneModel(
  engine: Engine,
  o: Parsed,
  listeners: Listeners<PruneProgress>,
  start: number,
  given: PruneOptions,
): Promise<PruneReport> {
  const source = engine.folder
  const { communicator } = o
  const ranks = communicator && communicator.size > 1 ? new Ranks(engine.device, communicator) : undefined
  const receivedBefore = communicator?.bytesReceived ?? 0
  const leads = (ranks?.rank ?? 0) === 0
  const { layers, resumable } = checkedLayers(engine, o)
  if (o.out !== undefined && leads) await OutputFolder.check(o.out, o)
  const { offload, work: planned } = await planMemory(engine, o)
  const masks = o.mask === undefined ? undefined : await openMasks(o.mask, layers)
  if (o.profile) await engine.device.profile() // starts it
  abortable(o.signal)
  const dense = await openOther(engine, o)
  const beside = dense ? [dense] : []
  let destination: ModelDestination | undefined
  try {
    // Before the text is read, which can take long: two jobs must not both begin.
    destination =
      o.out === undefined
        ? new MemoryDestination(engine)
        : ranks && !leads
          ? await FollowedDestination.create(engine, ranks)
          : await FolderDestination.create(engine, o.out, {
              ...folderOptions(engine, o, layers, dense),
              share: ranks && ((value) => ranks.share(value)),
            })
    const reading = performance.now()
    const drawn = leads ? await drawCalibration(engine, o) : { windows: [] }
    const { windows, text } = ranks ? await ranks.share(drawn) : drawn
    const training = o.distill && (await drawTraining(engine, o, text))
    const calibration = secondsSince(reading)
    abortable(o.signal)
    const inputs =
      leads && (o.out ?? o.inputs) ? await hashInputs(engine, { dense, windows, training, masks }) : {}
    if (leads) requireInputs(o.inputs, inputs)
    const record = new JobRecord(engine, 'prune', { given, resolved: o }, inputs)
    if (o.out !== undefined && resumable)
      await destination.begin(leads ? await identityOf(engine, o, { windows, masks, dense }) : {})
    const finished = destination.finished.length
    const asked = listeners.some && (finished > 0 || training || !planned)
    const details = { finished, ...(training && { trainingWindows: training.length }) }
    const work = asked ? (await planJob(engine, o, { offload: false, ...details })).work : planned
    const meter = new ProgressMeter(engine.device, blocksToPass(layers), work, listeners.tell, o.signal)
    // Steps on the way change a copy, so that the model stays as it is unless all goes well.
    const student = resumable ? engine : await openCopy(engine)
    if (student !== engine) beside.push(student)
    const stages = { ...o, masks, offload, dense, training, meter, ranks }
    const { reports, losses } = await runSteps(student, stages, layers, windows, destination)
    const operations = o.profile ? await engine.device.profile() : undefined
    abortable(o.signal)
    const achieved = meanShare(reports, ({ sparsity }) => sparsity)
    const { folder } = destination
    const report = (seconds: number, commit: number): PruneReport => ({
      model: source,
      out: folder,
      method: o.method,
      sparsity: { target: target(o, reports, achieved), achieved },
      ...(o.allocation !== 'uniform' && { targets: targetsByBlock(layers, targetsOf(reports)) }),
      ...(losses.length > 0 && { distillation: losses }),
      seconds,
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
      ...(ranks && { ranks: ranksReport(ranks.communicator, receivedBefore) }),
      ...(operations && { phases: phaseSeconds(operations, { seconds, calibration, commit }) }),
      layers: reports,
    })
    const ofFolder = destination instanceof FolderDestination ? destination : undefined
    const files = ofFolder && (await record.files(report(secondsSince(start), 0)))
    for (const [name, text] of files ?? []) ofFolder?.addFile(name, text)
    const committing = performance.now()
    await destination.commit()
    const result = report(secondsSince(start), secondsSince(committing))
    if (ofFolder) await record.complete(ofFolder.folder, layers.flat(), result)
    meter.end()
    return result
  } catch (error) {
    throw destination ? await destination.abort(error) : error
  } finally {
    for (const { weights } of beside) weights.dispose()
  }
}

/** The layers to prune, and whether the job can be resumed. Throws INVALID_OPTION. */
function checkedLayers(engine: Engine, o: Parsed): { layers: LinearSpec[][]; resumable: boolean } {
  const layers = selectLayers(engine.architecture, o)
  // What decides the result must all be in files.
  const resumable = !engine.weights.changed && stepsOf(o).length === 1 && !o.distill
  if (!o.resume || resumable) return { layers, resumable }
  const message =
    'prune: option resume: the model has been pruned in memory, which cannot be resumed: load it anew'
  throw new SparseGptError('INVALID_OPTION', message)
}

const folderOptions = (engine: Engine, o: Parsed, layers: LinearSpec[][], dense: Engine | undefined) => ({
  force: o.force,
  resume: o.resume,
  encoding: encodings[o.encoding],
  weights: (o.distill ? layersOf(engine) : layers.flat()).map(({ name }) => `${name}.weight`),
  denseModel: dense?.checkpoint,
  grids: gridsOf(engine, o, layers),
})

/** What a job would do. */
export interface DryRun {
  /** What it would take. */
  plan: TimedPlan
  /** The calibration windows that it would draw; 0 where it needs none. */
  windows: number
}

/**
 * Checks all that `prune` with these options needs (the text is read and encoded, masks and the dense model are opened, the output
 * folder is looked at) and plans it; nothing is pruned or written. Throws what `prune` would throw before it begins.
 */
export async function dryRun(model: Model, options: PruneOptions): Promise<DryRun> {
  const engine = engineOf(model, 'dryRun')
  const { onProgress, ...parsed } = parseOptions(z.preprocess(withQuality, schema), options, 'prune')
  return engine.job(parsed.signal, async (signal) => {
    const o = { ...parsed, signal, allocation: await readAllocation(parsed.allocation) }
    const { layers } = checkedLayers(engine, o)
    const { offload } = await planMemory(engine, o)
    const masks = o.mask === undefined ? undefined : await openMasks(o.mask, layers)
    const dense = await openOther(engine, o)
    try {
      if (o.out !== undefined)
        await FolderDestination.rehearse(engine, o.out, folderOptions(engine, o, layers, dense))
      const { calibration } = o
      if (calibration?.saveTokens !== undefined) await requireWritable(calibration.saveTokens)
      const { windows, text } = await drawCalibration(engine, {
        ...o,
        calibration: calibration && { ...calibration, saveTokens: undefined },
      })
      const training = o.distill && (await drawTraining(engine, o, text))
      if (o.inputs) requireInputs(o.inputs, await hashInputs(engine, { dense, windows, training, masks }))
      const plan = await planPruning(engine.name, engine.checkpoint.config, {
        ...plannedJob(engine, o),
        offload: offload !== undefined,
        ...(training && { trainingWindows: training.length }),
      })
      const seconds = await timed(plan, engine.device.name, engine.weights.dtype)
      return { plan: { ...plan, ...seconds }, windows: windows.length }
    } finally {
      dense?.weights.dispose()
    }
  })
}

const ranksReport = ({ size, bytesReceived }: Communicator, before: number) => ({
  count: size,
  bytesReceived: bytesReceived - before,
})

/** What weights are rounded to, by name. */
function gridsOf(engine: Engine, o: Parsed, layers: readonly LinearSpec[][]): Map<string, Grid> {
  const grids = new Map<string, Grid>()
  const { bits, symmetric } = o
  for (const { name, columns, layout } of bits === undefined ? [] : layers.flat()) {
    const { groupSize = columns } = o
    grids.set(`${name}.weight`, { bits: bits!, groupSize, symmetric, transposed: layout === 'in-out' })
  }
  for (const { name, shape } of o.headBits ? tokenMatrices(engine.checkpoint) : []) {
    const [, columns = 0] = shape
    const groupSize = columns % 128 === 0 ? 128 : columns
    grids.set(name, { bits: o.headBits!, groupSize, symmetric: true, transposed: false })
  }
  return grids
}

interface Stages extends Omit<Parsed, 'offload' | 'dense'> {
  masks: MaskFile | undefined
  offload: Offload | undefined
  dense: Engine | undefined
  /** The windows to train the whole model on, where that is asked for. */
  training: readonly Int32Array[] | undefined
  meter: ProgressMeter
  ranks: Ranks | undefined
}

type ModelDestination = FolderDestination | MemoryDestination | FollowedDestination

/**
 * Prunes `student` to every step of the schedule in turn and trains it after each, as the options say; what comes out of the last goes to
 * `destination`, the rest into the student's memory.
 */
async function runSteps(
  student: Engine,
  { meter, training, ...o }: Stages,
  layers: LinearSpec[][],
  windows: readonly Int32Array[],
  destination: ModelDestination,
): Promise<{ reports: LayerReport[]; losses: DistillationLosses[] }> {
  const steps = stepsOf(o)
  let reports: LayerReport[] = []
  const losses: DistillationLosses[] = []
  const into = async (last: boolean, work: (to: ModelDestination) => Promise<void>) => {
    if (last) return work(destination)
    const memory = new MemoryDestination(student)
    try {
      await work(memory)
    } catch (error) {
      throw await memory.abort(error)
    }
    await memory.commit()
  }
  for (const [i, sparsity] of steps.entries()) {
    const last = i === steps.length - 1
    Object.assign(meter, { scheduleStep: i, scheduleSteps: steps.length })
    await into(last && !training, async (to) => {
      reports = await pruneBlocks(student, { ...o, sparsity }, layers, windows, to, meter)
    })
    const { dense, distill } = o
    if (!training || !distill || !dense) continue
    await into(last, async (to) => {
      const settings = { ...distill, seed: o.calibration?.seed ?? 0 }
      const report = (progress: DistillationProgress) => meter.step('distill', { distillation: progress })
      losses.push((await train(student, dense, training, settings, to, report)).losses)
    })
  }
  return { reports, losses }
}

/** The dense model, where it is not the one that is pruned; it is the caller's to dispose of. */
async function openOther(engine: Engine, o: Parsed): Promise<Engine | undefined> {
  const isAsked = needsDenseStream(o) || o.distill
  const isOther = o.dense !== undefined || o.distill || stepsOf(o).length > 1 || engine.weights.changed
  if (!isAsked || !isOther) return undefined
  const { onDownload } = o.calibration ?? {}
  return openDense(engine, o.dense ?? engine.folder, 'prune', { onDownload, signal: o.signal })
}

/** The same model once more, with what is in its memory only. */
async function openCopy(engine: Engine): Promise<Engine> {
  const copy = await openBeside(engine, engine.folder, {})
  for (const [name, tensor] of engine.weights.replacements) copy.weights.replace(name, tensor.share())
  return copy
}

const secondsSince = (start: number) => (performance.now() - start) / 1000

type Parsed = Omit<z.output<typeof schema>, 'allocation' | 'onProgress'> & { allocation: Allocation }

/** The job as the planner wants it. */
const plannedJob = ({ device, weights }: Engine, o: Parsed): Omit<PlannedJob, 'offload'> => ({
  ...o,
  ...o.calibration,
  samples: o.calibration?.samples ?? 1,
  device: device.name,
  ranks: o.communicator?.size,
  dtype: weights.dtype,
  writes: o.out !== undefined,
  dense: o.dense !== undefined,
})

/** Plans the job; see jobNeeds. */
const planJob = (
  engine: Engine,
  o: Parsed,
  rest: Pick<PlannedJob, 'offload' | 'finished' | 'trainingWindows'>,
) => jobNeeds(engine.checkpoint.config, { ...plannedJob(engine, o), ...rest })

/**
 * Decides how activations leave the device's memory while they wait, if they have to; where memory is limited by a plan of the job,
 * whose work is returned. Throws OUT_OF_MEMORY, WRITE_FAILED.
 */
async function planMemory(
  engine: Engine,
  o: Parsed,
): Promise<{ work?: Work; offload?: Offload | undefined }> {
  const { device } = engine
  const file = o.offload === undefined ? undefined : device.createSpillFile(o.offload)
  const move: Offload = (tensor) => device.offload(tensor, file)
  // The context and the libraries of a GPU take some of its memory.
  const limit = o.memory ?? (device.memory === undefined ? undefined : 0.9 * device.memory)
  if (limit === undefined) return { offload: file && move }
  const { memory, work } = await planJob(engine, o, { offload: false })
  const needed = memory.peak
  if (needed <= limit) return { work }
  const elsewhere = file !== undefined || !device.traits.inHostMemory
  if (elsewhere && (await planJob(engine, o, { offload: true })).memory.peak <= limit)
    return { work, offload: move }
  const advice = elsewhere ? '' : 'offload (a folder for activations), '
  const order = o.sequential === 'layer' ? 'sequential "block", ' : ''
  const message = `prune: about ${sizeText(needed)} are needed, but memory allows ${sizeText(limit)}: use ${advice}${order}dtype "bfloat16", fewer samples or a shorter sequenceLength`
  throw new SparseGptError('OUT_OF_MEMORY', message)
}

/** What decides the job's result, for what resumes it. */
function identityOf(
  engine: Engine,
  o: Parsed,
  {
    windows,
    masks,
    dense: other,
  }: { windows: readonly Int32Array[]; masks: MaskFile | undefined; dense: Engine | undefined },
): Promise<JobIdentity> {
  // The mask is known by its contents, the text by its tokens; the rest does not change the result.
  const { out, force, resume, profile, offload, memory, signal, communicator, inputs, ...more } = o
  const { calibration, mask, ...rest } = more
  const { quality, dense, ...deciding } = rest
  const alpha = o.target === 'dense' ? (o.alpha ?? defaultAlpha) : undefined
  return jobIdentity(engine, { ...deciding, alpha }, windows, masks, other)
}

async function openMasks(file: string, layers: LinearSpec[][]): Promise<MaskFile> {
  const masks = await MaskFile.open(file)
  for (const linear of layers.flat()) masks.require(`${linear.name}.weight`, storedShape(linear))
  return masks
}

/** The calibration windows, and the token ids that they were drawn from, where that is one text and has been read. */
async function drawCalibration(
  engine: Engine,
  o: Parsed,
): Promise<{ windows: Int32Array[]; text?: Int32Array | undefined }> {
  const isNeeded = needsInputs(o)
  if (!o.calibration || !(isNeeded || o.calibration.saveTokens !== undefined)) return { windows: [] }
  const sequenceLength = engine.sequenceLength(o.calibration.sequenceLength)
  const { samples: count, seed, saveTokens: savedTo } = o.calibration
  if (savedTo !== undefined) await requireWritable(savedTo)
  // What is limited of a GPU is its own memory.
  const memory = engine.device.traits.inHostMemory ? o.memory : undefined
  const options = { samples: count, seed, sequenceLength, memory, signal: o.signal }
  const { windows, text } = await calibrationWindows(engine, o.calibration, options)
  if (memory !== undefined) await engine.closeTokenizer()
  if (savedTo !== undefined) await saveTokens(savedTo, text ?? windows)
  return { windows: isNeeded ? windows : [], text }
}

/** The windows that the whole model is trained on: all of the calibration text, of which `text` are the token ids if they are known. */
function drawTraining(engine: Engine, o: Parsed, text: Int32Array | undefined): Promise<Int32Array[]> {
  const { seed, ...source } = o.calibration ?? { seed: 0 }
  const sequenceLength = engine.sequenceLength(o.calibration?.sequenceLength)
  return trainingWindows(engine, text ? { tokens: text } : source, { seed, sequenceLength, signal: o.signal })
}

const targetsOf = (layers: readonly LayerReport[]) =>
  new Map(layers.map(({ name, target = 0 }) => [name, target]))

/** The share asked for; a mask asks for what it marks. */
function target(o: Parsed, layers: readonly LayerReport[], achieved: number): number {
  if (o.allocation !== 'uniform') return meanShare(layers, (layer) => layer.target ?? 0)
  if (o.schedule) return o.schedule.at(-1)!
  if (o.pattern) return o.pattern.n / o.pattern.m
  return o.mask === undefined ? (o.sparsity ?? 0.5) : achieved
}
