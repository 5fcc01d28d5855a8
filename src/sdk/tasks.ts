import * as z from 'zod'
import { evaluateTask, type TaskResult } from '../evaluation/evaluate.js'
import { harness, taskNames, type TaskName } from '../evaluation/tasks.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import { parseOptions, path, type PathOrUrl } from '../options.js'
import { engineOf, type Model } from './model.js'

/** Which tasks a model is evaluated on, and how. */
export interface TaskOptions {
  /** The names of the tasks. */
  tasks: readonly TaskName[]
  /** The number of examples before each question. Default 0. */
  shots?: number
  /** The number of questions of each task, from the first on; of mmlu of each subject. Default: all. */
  limit?: number
  /**
   * The path of a folder with a folder for each task, which has the files of its splits, such as `piqa/validation.jsonl`. Default: the
   * hub.
   */
  data?: PathOrUrl
  /** The function that is called while a data set is downloaded. */
  onDownload?: (progress: DownloadProgress) => void
  /** A function that is called after each step with the share of the work done, in (0, 1], and the task under way. */
  onProgress?: (fraction: number, task: TaskName) => void
  /** A signal that stops the evaluation (ABORTED). */
  signal?: AbortSignal
}

/** What a model makes of some tasks. */
export interface TaskReport {
  /** Whose prompts and scoring they are: the name and the version of the harness. */
  harness: string
  /** The number of examples before each question. */
  shots: number
  /** The results, in the order of the tasks. */
  results: TaskResult[]
}

/**
 * The schema of the options that say which tasks, how, and where their data are.
 *
 * @internal
 */
export const taskChoice = z.strictObject({
  tasks: z
    .array(z.enum(taskNames))
    .min(1)
    .refine((names) => new Set(names).size === names.length, 'must name each task once'),
  shots: z.int().min(0).max(1000).default(0),
  limit: z.int().min(1).optional(),
  data: path.optional(),
})

const schema = taskChoice.extend({
  onDownload: z
    .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function')
    .optional(),
  onProgress: z
    .custom<(fraction: number, task: TaskName) => void>((value) => typeof value === 'function')
    .optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

/**
 * Evaluates a model on tasks that papers report, by the likelihood of given answers: prompts and scoring are those of EleutherAI's
 * lm-evaluation-harness.
 *
 * Throws INVALID_OPTION (also for more examples than there are), FILE_NOT_FOUND, INVALID_TEXT (a row of the data), INVALID_CHECKPOINT
 * (tokenizer), DOWNLOAD_FAILED, WRITE_FAILED (the cache), NON_FINITE, ABORTED.
 */
export async function evaluateTasks(model: Model, options: TaskOptions): Promise<TaskReport> {
  const engine = engineOf(model, 'evaluateTasks')
  const { tasks, onProgress, ...o } = parseOptions(schema, options, 'evaluateTasks')
  return engine.job(o.signal, async (signal) => {
    const results: TaskResult[] = []
    for (const [i, task] of tasks.entries()) {
      const report = (fraction: number) => onProgress?.((i + fraction) / tasks.length, task)
      results.push(await evaluateTask(engine, task, { ...o, signal, onProgress: report }))
    }
    return { harness, shots: o.shots, results }
  })
}
