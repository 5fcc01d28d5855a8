import * as z from 'zod'
import { abortable } from '../abort.js'
import { calibrationWindows, textSource, type TextSource } from '../calibration/source.js'
import { saveTokens } from '../calibration/token-file.js'
import { MaskFile } from '../checkpoint/mask-file.js'
import { SparseGptError } from '../errors.js'
import type { LinearSpec } from '../models/architecture.js'
import type { Model, Offload } from '../models/model.js'
import { storedShape } from '../models/weights.js'
import { planPruning } from '../planning/plan.js'
import { FolderDestination, MemoryDestination } from './destination.js'
import {
  checkSelection,
  memorySize,
  modelPruningOptions,
  parseOptions,
  samples,
  type ModelPruningOptions,
} from './options.js'
import { phaseSeconds } from './phases.js'
import { pruneBlocks, selectLayers } from './pipeline.js'
import type { PruneProgress, PruneReport } from './report.js'

export interface CalibrationOptions extends TextSource {
  /** Windows drawn from the text. Default 128. */
  samples?: number
  /** Tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** Of Python's generator, which draws the windows. Default 0. */
  seed?: number
  /** Saves the encoded text (of C4 the windows) to this .safetensors file, which can be given as `file` next time. */
  saveTokens?: string
}

export interface PruneOptions extends ModelPruningOptions {
  /** A safetensors file of masks (BOOL, U8 or I8; 1 = prune), named and shaped as the weights to prune. */
  mask?: string
  /** The text whose activations the pruning preserves. Not needed for magnitude. */
  calibration?: CalibrationOptions
  /** Folder for the pruned model, in the source's layout and dtypes. Without it the model is pruned in memory only. */
  out?: string
  /** Replace `out` if it exists. */
  force?: boolean
  /** Report where the time goes (PruneReport.phases). Costs a little on a GPU, which then waits after every operation. */
  profile?: boolean
  /**
   * Folder for a file that takes the activations while they wait (samples · sequence length · hidden size of them): always, or
   * with `memory` only when they do not fit. On a GPU they may also wait in the host's memory: see `memory`.
   */
  offload?: string
  /**
   * What the job may take of the process's memory, or on a GPU of the GPU's: bytes, or '16GB'. A job that would take more is
   * refused before anything is read, unless its activations can wait elsewhere: in `offload`, or from a GPU in the host's
   * memory. Default: no limit; on a GPU 90 % of its memory.
   */
  memory?: number | string
  onProgress?: (progress: PruneProgress) => void
  signal?: AbortSignal
}

const schema = modelPruningOptions
  .extend({
    mask: z.string().min(1).optional(),
    calibration: textSource
      .extend({
        samples,
        sequenceLength: z.int().min(1).optional(),
        seed: z.int().default(0),
        saveTokens: z.string().endsWith('.safetensors').optional(),
      })
      .strict()
      .optional(),
    out: z.string().min(1).optional(),
    force: z.boolean().default(false),
    profile: z.boolean().default(false),
    offload: z.string().min(1).optional(),
    memory: memorySize.optional(),
    onProgress: z
      .custom<(progress: PruneProgress) => void>((value) => typeof value === 'function')
      .optional(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .strict()
  .superRefine((options, context) => {
    checkSelection(options, context)
    if (options.method !== 'magnitude' && !options.calibration) {
      const message = `is needed for method "${options.method}": { file }, { tokens } or another source of text`
      context.addIssue({ code: 'custom', path: ['calibration'], message })
    }
  })

/**
 * Prunes a model block by block with SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774), Wanda or by magnitude. With
 * `out` the pruned model appears there, complete or not at all, and `model` uses it from then on.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_TEXT (calibration text shorter than a window), NON_FINITE,
 * NOT_POSITIVE_DEFINITE, OUTPUT_EXISTS, WRITE_FAILED, INVALID_CHECKPOINT, OUT_OF_MEMORY, ABORTED.
 */
export async function prune(model: Model, options: PruneOptions): Promise<PruneReport> {
  const start = performance.now()
  const o = parseOptions(schema, options, 'prune')
  const source = model.folder
  const layers = selectLayers(model.architecture, o)
  const offload = await planOffload(model, o)
  const masks = o.mask === undefined ? undefined : await openMasks(o.mask, layers)
  if (o.profile) await model.device.profile() // starts it
  abortable(o.signal)
  const reading = performance.now()
  const windows = await drawCalibration(model, o)
  const calibration = secondsSince(reading)
  abortable(o.signal)
  const destination =
    o.out === undefined ? new MemoryDestination(model) : await FolderDestination.create(model, o.out, o.force)
  try {
    const reports = await pruneBlocks(model, { ...o, masks, offload }, layers, windows, destination)
    const operations = o.profile ? await model.device.profile() : undefined
    abortable(o.signal)
    const committing = performance.now()
    await destination.commit()
    const commit = secondsSince(committing)
    const weights = reports.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
    const achieved =
      reports.reduce((sum, layer) => sum + layer.sparsity * layer.rows * layer.columns, 0) / weights
    const seconds = secondsSince(start)
    return {
      model: source,
      out: destination.folder,
      method: o.method,
      sparsity: { target: target(o, achieved), achieved },
      seconds,
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
      ...(operations && { phases: phaseSeconds(operations, { seconds, calibration, commit }) }),
      layers: reports,
    }
  } catch (error) {
    await destination.abort()
    throw error
  }
}

const secondsSince = (start: number) => (performance.now() - start) / 1000

type Parsed = z.output<typeof schema>

/** How activations leave the device's memory while they wait, if they have to. Throws OUT_OF_MEMORY, WRITE_FAILED. */
async function planOffload(model: Model, o: Parsed): Promise<Offload | undefined> {
  const { device, weights, checkpoint, name } = model
  const file = o.offload === undefined ? undefined : device.createSpillFile(o.offload)
  const move: Offload = (tensor) => device.offload(tensor, file)
  // The context and the libraries of a GPU take some of its memory.
  const limit = o.memory ?? (device.memory === undefined ? undefined : 0.9 * device.memory)
  if (limit === undefined) return file && move
  const job = {
    ...o,
    ...o.calibration,
    samples: o.calibration?.samples ?? 1,
    device: device.kind,
    dtype: weights.dtype,
  }
  const needs = async (offload: boolean) =>
    (await planPruning(name, checkpoint.config, { ...job, onProgress: undefined, offload })).memory.peak
  const needed = await needs(false)
  if (needed <= limit) return undefined
  const elsewhere = file !== undefined || device.kind === 'cuda'
  if (elsewhere && (await needs(true)) <= limit) return move
  const advice = elsewhere ? '' : 'offload (a folder for activations), '
  const message = `prune: about ${gigabytes(needed)} are needed, but memory allows ${gigabytes(limit)}: use ${advice}dtype "bfloat16", fewer samples or a shorter sequenceLength`
  throw new SparseGptError('OUT_OF_MEMORY', message)
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`

async function openMasks(file: string, layers: LinearSpec[][]): Promise<MaskFile> {
  const masks = await MaskFile.open(file)
  for (const linear of layers.flat()) masks.require(`${linear.name}.weight`, storedShape(linear))
  return masks
}

async function drawCalibration(model: Model, o: Parsed): Promise<Int32Array[]> {
  if (!o.calibration || o.method === 'magnitude') return []
  const sequenceLength = model.sequenceLength(o.calibration.sequenceLength)
  const { samples: count, seed } = o.calibration
  const options = { samples: count, seed, sequenceLength, signal: o.signal }
  const { windows, text } = await calibrationWindows(model, o.calibration, options)
  if (o.calibration.saveTokens !== undefined) await saveTokens(o.calibration.saveTokens, text ?? windows)
  return windows
}

/** The share asked for; a mask asks for what it marks. */
function target(o: Parsed, achieved: number): number {
  if (o.pattern) return o.pattern.n / o.pattern.m
  return o.mask === undefined ? (o.sparsity ?? 0.5) : achieved
}
