import { join } from 'node:path'
import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { readRegularFile } from '../files/regular-file.js'
import { reason } from '../files/read-error.js'
import type { PruneReport } from '../pruning/report.js'
import type { DistillationLosses } from '../training/saved-training.js'
import { commit, version } from '../package.js'
import type { LayerPicture } from './picture.js'

/** The names of the files of a report. */
export const reportFiles = { json: 'sparsegpt-report.json', html: 'sparsegpt-report.html' } as const

/** What a job was run with. */
export interface Versions {
  sparsegpt: string
  /** The commit of the repository, where that is known. */
  commit?: string
  node: string
  /** The system and the processor, such as 'linux x64'. */
  platform: string
  /** The device that computed, with its instruction set or its name. */
  device?: string
}

export const inputNames = ['model', 'dense', 'tokenizer', 'calibration', 'training', 'mask'] as const

/**
 * Hashes of what a job reads. model and dense: of config.json and of samples of every tensor; tokenizer: of its files; calibration and
 * training: of the token ids of the windows; mask: of samples of its tensors.
 */
export type InputHashes = Partial<Record<(typeof inputNames)[number], string>>

/** The perplexities that `--eval` measures. */
export interface Evaluation {
  /** The name of the data set, or the path of the file. */
  text: string
  /** How many windows there were, of how many tokens, where one of the two models could be measured. */
  windows?: number
  sequenceLength?: number
  /** The perplexity before the job. */
  before?: number
  /** The perplexity of the model that the job has made; null where it could not be measured. */
  after: number | null
}

/** What every report says. */
interface Header<Job extends string> {
  format: 1
  job: Job
  /** The time at which the job ended, as ISO 8601 has it. */
  created: string
  versions: Versions
}

/** The report of a job that has made a model. */
export interface ModelJobReport extends Header<'prune' | 'distill'> {
  /** The model that was read: its hub id, with the commit, or the path of its folder. */
  model: string
  /** Where and how the model computed. */
  load: { device: string; dtype: 'float32' | 'bfloat16' }
  /** The options as they were given, with paths made absolute, and with what was taken for those that were not. */
  options: { given: Record<string, unknown>; resolved: Record<string, unknown> }
  inputs: InputHashes
  /** Why the options alone do not repeat the job. */
  unrepeatable?: string
  result: Omit<PruneReport, 'method'> & { method: string; losses?: DistillationLosses }
  evaluation?: Evaluation
  pictures?: LayerPicture[]
}

/** The report of a measurement. */
export interface MeasurementReport<
  Job extends 'compare' | 'sweep' | 'sensitivity',
  Result,
> extends Header<Job> {
  options: Record<string, unknown>
  result: Result
}

/** What a report begins with. */
export function header<Job extends string>(job: Job, device?: string): Header<Job> {
  const from = commit()
  return {
    format: 1,
    job,
    created: new Date().toISOString(),
    versions: {
      sparsegpt: version,
      ...(from !== undefined && { commit: from }),
      node: process.version,
      platform: `${process.platform} ${process.arch}`,
      ...(device !== undefined && { device }),
    },
  }
}

/** The text of a report's file. */
export const reportText = (report: object): string => `${JSON.stringify(report, null, 1)}\n`

const maxReportBytes = 2 ** 28

/** What a report's file says, as JSON. Throws FILE_NOT_FOUND, INVALID_OPTION for what is no JSON. */
export async function readReport(file: string): Promise<unknown> {
  const tooLong = () =>
    new SparseGptError('INVALID_OPTION', `${file} is larger than a report can be: give ${reportFiles.json}`)
  const advice = `give the ${reportFiles.json} of a pruned model`
  const text = (await readRegularFile(file, { advice, maxBytes: maxReportBytes, tooLong })).toString('utf8')
  try {
    return JSON.parse(text)
  } catch (cause) {
    const message = `${file}: a report must be JSON: ${reason(cause)}: ${advice}`
    throw new SparseGptError('INVALID_OPTION', message, { cause })
  }
}

const ownReport = z.looseObject({ format: z.literal(1), job: z.enum(['prune', 'distill']) })

/** The report that lies in a folder. Throws FILE_NOT_FOUND, INVALID_OPTION. */
export async function reportIn(folder: string): Promise<ModelJobReport> {
  const file = join(folder, reportFiles.json)
  const parsed = ownReport.safeParse(await readReport(file))
  if (parsed.success) return parsed.data as unknown as ModelJobReport
  throw new SparseGptError('INVALID_OPTION', `${file} is no report of prune or distill`)
}
