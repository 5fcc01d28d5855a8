import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { readConfig } from '../files/checkpoint.js'
import { resolveModel } from '../hub/model-folder.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import type { DeviceName } from '../native/device.js'
import type { Arithmetic } from '../native/operations.js'
import { namedDevice } from '../native/devices.js'
import { parseOptions, type PathOrUrl } from '../options.js'
import { measureRates } from './benchmark/rates.js'
import { planPruning, type Plan } from '../planning/planned-job.js'
import { readAllocation } from '../pruning/allocation/recipe.js'
import {
  checkSelection,
  modelPruningOptions,
  samples,
  withQuality,
  type ModelPruningOptions,
} from '../pruning/options.js'

export type { Plan } from '../planning/planned-job.js'

/** The options of `prune` and `loadModel` that time and memory depend on; defaults are theirs. */
export type PlanOptions = ModelPruningOptions & PlanSettings

interface PlanSettings {
  /** The device whose memory is planned: 'cpu' (default) or 'cuda'. */
  device?: Exclude<DeviceName, 'auto'>
  /** The element type of activations and matrices. Default 'float32'. */
  dtype?: 'float32' | 'bfloat16'
  /** The number of calibration windows. Default 128. */
  samples?: number
  /** The number of tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** Whether activations are kept in a file while they wait, as with `prune`'s option `offload`. Default false. */
  offload?: boolean
  /**
   * The number of ranks that work on the job, each on a machine like this one; one of them is planned, and its time estimated. Default:
   * one process.
   */
  ranks?: number
  /** Whether the time is estimated, for which the rates of this machine are measured, in some seconds. Default: with `ranks` only. */
  estimate?: boolean
  /** How fast a rank sends to others while it receives: '100Gbps' in bits, '12.5GB/s' in bytes. Default '10Gbps'. */
  bandwidth?: string
  /** A function that is called while config.json is downloaded from the hub. */
  onDownload?: (progress: DownloadProgress) => void
  signal?: AbortSignal
}

/** A plan with the estimated time. */
export interface TimedPlan extends Plan {
  /** The seconds by what they are spent on, of several ranks those of one; conversions and the disk come on top. */
  seconds: Record<Arithmetic | 'communicate' | 'total', number>
  /** The rates that were measured, in FLOP/s. */
  rates: Record<Arithmetic, number>
}

/** The plan of a job on several ranks. */
export interface RankedPlan extends TimedPlan {
  /** The number of ranks. */
  ranks: number
  /** The seconds that one rank would take for all, by `ranks` times those of a rank. */
  efficiency: number
}

const units: Record<string, number> = { k: 1e3, m: 1e6, g: 1e9, t: 1e12 }

/** Validates a bandwidth such as '100Gbps'; bytes/s. */
const bandwidth = z.string().transform((text, context): number => {
  const [, amount, unit, kind] = /^(\d+(?:\.\d+)?)\s*([kmgt])(bps|bit\/s|b\/s)$/i.exec(text.trim()) ?? []
  const bits = Number(amount) * (units[unit?.toLowerCase() ?? ''] ?? NaN)
  if (bits > 0) return kind?.toLowerCase() === 'b/s' ? bits : bits / 8
  context.issues.push({
    code: 'custom',
    input: text,
    message: "must be a bandwidth such as '100Gbps' or '12.5GB/s'",
  })
  return z.NEVER
})

const schema = modelPruningOptions
  .extend({
    device: namedDevice.default('cpu'),
    dtype: z.enum(['float32', 'bfloat16']).default('float32'),
    samples,
    sequenceLength: z.int().min(1).optional(),
    offload: z.boolean().default(false),
    ranks: z.int().min(1).max(65536).optional(),
    estimate: z.boolean().optional(),
    bandwidth: bandwidth.default(10e9 / 8),
    onDownload: z
      .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function')
      .optional(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .strict()
  .superRefine(checkSelection)

/**
 * Plans what pruning a model would take, from its config.json alone: of a model on the hub nothing else is downloaded. The pipeline
 * runs as `prune` would, on a device that knows shapes only, so the plan follows whatever the pipeline does.
 *
 * Not in it: memory for encoding the calibration text, which depends on the text and ends before the pruning begins (`prune` with
 * `memory` counts it).
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_CHECKPOINT, UNSUPPORTED_MODEL, ABORTED.
 */
export async function plan(
  pathOrHubId: PathOrUrl,
  options: PlanOptions & { ranks: number },
): Promise<RankedPlan>
export async function plan(
  pathOrHubId: PathOrUrl,
  options: PlanOptions & { estimate: true },
): Promise<TimedPlan>
export async function plan(pathOrHubId: PathOrUrl, options?: PlanOptions): Promise<Plan>
export async function plan(pathOrHubId: PathOrUrl, options: PlanOptions = {}): Promise<Plan | RankedPlan> {
  const o = parseOptions(z.preprocess(withQuality, schema), options, 'plan')
  const allocation = await readAllocation(o.allocation)
  const { folder, name } = await resolveModel(pathOrHubId, { ...o, configOnly: true })
  const config = await readConfig(folder)
  const job = { ...o, allocation, writes: true }
  const { ranks, estimate = ranks !== undefined } = o
  try {
    const planned = await planPruning(name, config, job)
    if (!estimate) return planned
    const { seconds, rates } = await timed(planned, o.device, o.dtype, o.bandwidth)
    if (ranks === undefined) return { ...planned, seconds, rates }
    const alone = ranks === 1 ? planned : await planPruning(name, config, { ...job, ranks: 1 })
    const efficiency = secondsOf(alone, rates, o.bandwidth).total / ranks / seconds.total
    return { ...planned, ranks, seconds, efficiency, rates }
  } catch (error) {
    throw ofPlan(error)
  }
}

/** The error as `plan` says it, where the pipeline that it runs has called the option one of `prune`. */
function ofPlan(error: unknown): unknown {
  if (!(error instanceof SparseGptError) || !error.message.startsWith('prune: ')) return error
  const message = `plan: ${error.message.slice('prune: '.length)}`
  return new SparseGptError(error.code, message, { cause: error })
}

/**
 * The time that a plan takes at the rates of this machine, which are measured. Throws DEVICE_UNAVAILABLE, OUT_OF_MEMORY.
 *
 * @internal
 */
export async function timed(
  planned: Plan,
  device: Exclude<DeviceName, 'auto'>,
  dtype: 'float32' | 'bfloat16',
  bandwidth = Infinity,
): Promise<Pick<TimedPlan, 'seconds' | 'rates'>> {
  const rates = await measureRates(device, dtype)
  return { seconds: secondsOf(planned, rates, bandwidth), rates }
}

function secondsOf(
  { flop, received = 0 }: Plan,
  rates: TimedPlan['rates'],
  bandwidth: number,
): TimedPlan['seconds'] {
  const seconds = Object.fromEntries(arithmetic.map((kind) => [kind, flop[kind] / rates[kind]]))
  const all = { ...seconds, communicate: received / bandwidth }
  const total = Object.values(all).reduce((a, b) => a + b, 0)
  return { ...all, total } as TimedPlan['seconds']
}

const arithmetic: readonly Arithmetic[] = ['linear', 'attention', 'gram', 'factor', 'solve']
