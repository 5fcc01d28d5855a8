import { readdir } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { ZodError } from 'zod'
import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import { readError } from '../files/read-error.js'
import { openSnapshot } from '../hub/open-snapshot.js'
import type { DownloadOptions } from '../hub/snapshot.js'
import { readRows, type Row } from '../text/documents.js'
import { textReadError } from '../text/text.js'
import { taskOf, type Question, type Split, type Task, type TaskName } from './tasks.js'

/** Where the questions of tasks are read. */
export interface TaskSource extends DownloadOptions {
  /**
   * The path of a folder with a folder for each task, which has a file for each split: `piqa/validation.jsonl`, also .json or
   * .parquet, or shards as the hub names them. Undefined for the hub.
   */
  data?: string | undefined
}

/** The questions of a split, in order, by subject where the task has some. */
export type Questions = Map<string, Question[]>

/**
 * The questions of one split of a task.
 *
 * Throws FILE_NOT_FOUND, INVALID_TEXT (with file, row and field), INVALID_OPTION, DOWNLOAD_FAILED, WRITE_FAILED (the cache), ABORTED.
 */
export async function readQuestions(name: TaskName, split: Split, source: TaskSource): Promise<Questions> {
  const task = taskOf(name)
  const folder = source.data === undefined ? undefined : resolve(source.data, name)
  const files = folder === undefined ? [await downloaded(name, split, source)] : await found(folder, split)
  const questions: Questions = new Map()
  for (const file of files) {
    try {
      for await (const row of readRows(file, task.columns)) {
        abortable(source.signal)
        const { subject, question } = questionOf(task, row)
        const others = questions.get(subject) ?? []
        questions.set(subject, others)
        others.push(question)
      }
    } catch (error) {
      throw textReadError(file, error)
    }
  }
  if (questions.size > 0) return questions
  throw new SparseGptError('INVALID_TEXT', `${files.join(', ')} has no rows: give questions of ${name}`)
}

function questionOf(task: Task, { where, fields }: Row): { subject: string; question: Question } {
  try {
    const question = task.question(fields)
    return { subject: task.subject === undefined ? '' : String(fields?.[task.subject]), question }
  } catch (error) {
    if (!(error instanceof ZodError)) throw error
    const problems = error.issues.map(({ path, message }) => `${path.join('.') || 'the row'}: ${message}`)
    throw new SparseGptError('INVALID_TEXT', `${where}: ${problems.join('; ')}`, { cause: error })
  }
}

/** The files of a split in a folder. Throws FILE_NOT_FOUND; INVALID_OPTION when it is there twice. */
async function found(folder: string, split: Split): Promise<string[]> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw readError(error, folder, 'the folder of task data needs one for each task')
  })
  const pattern = /^([a-z]+)(-\d+-of-\d+)?\.(jsonl|ndjson|json|parquet)(\.gz)?$/
  const own = names.filter((name) => pattern.exec(name)?.[1] === split).sort()
  if (own.length === 0) {
    const message = `${folder} has no ${split}.jsonl, ${split}.json or ${split}.parquet, which the task needs`
    throw new SparseGptError('FILE_NOT_FOUND', message)
  }
  if (own.length > 1 && own.some((name) => pattern.exec(name)?.[2] === undefined)) {
    const message = `${folder} has the split ${split} more than once (${own.join(', ')}): leave one`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  return own.map((name) => join(folder, name))
}

/** The file of a split that the hub has made of a data set, whatever form its owner keeps it in. */
async function downloaded(name: TaskName, split: Split, options: DownloadOptions): Promise<string> {
  const { hub } = taskOf(name)
  if (!hub) {
    const message = `the data of ${name} is not free: give its files with the option data (--task-data)`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  const repository = { type: 'dataset', name: hub.name, revision: 'refs/convert/parquet' } as const
  const snapshot = await openSnapshot(repository, options)
  let failure: unknown
  for (const configuration of hub.configurations) {
    const file = `${configuration}/${split}/0000.parquet`
    try {
      await snapshot.fetch([file])
      return join(snapshot.folder, file)
    } catch (error) {
      abortable(options.signal)
      failure ??= error
    }
  }
  throw failure
}
