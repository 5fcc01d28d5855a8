import * as z from 'zod'
import { readConfig } from '../files/checkpoint.js'
import { resolveModel } from '../hub/model-folder.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import type { DeviceName } from '../native/device.js'
import { namedDevice } from '../native/devices.js'
import { parseOptions } from '../options.js'
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
export interface PlanOptions extends ModelPruningOptions {
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
  /** A function that is called while config.json is downloaded from the hub. */
  onDownload?: (progress: DownloadProgress) => void
  signal?: AbortSignal
}

const schema = modelPruningOptions
  .extend({
    device: namedDevice.default('cpu'),
    dtype: z.enum(['float32', 'bfloat16']).default('float32'),
    samples,
    sequenceLength: z.int().min(1).optional(),
    offload: z.boolean().default(false),
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
export async function plan(pathOrHubId: string, options: PlanOptions = {}): Promise<Plan> {
  const o = parseOptions(z.preprocess(withQuality, schema), options, 'plan')
  const allocation = await readAllocation(o.allocation)
  const { folder, name } = await resolveModel(pathOrHubId, { ...o, configOnly: true })
  return planPruning(name, await readConfig(folder), { ...o, allocation, writes: true })
}
