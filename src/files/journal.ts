import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { open, readFile, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { SparseGptError } from '../errors.js'
import { writeFully } from './copy-range.js'
import { readError } from './read-error.js'
import type { TensorLayout } from './safetensors.js'

/** The name of the journal in a partial folder. */
export const journalFile = 'journal'

/** What decides the result of a job, by name; each value is one that people can compare. */
export type JobIdentity = Record<string, string>

/** What a journal says of a finished block, or of a training's steps up to one. */
export interface JournalEntry<Block> {
  /** The weights that were written for it, in the order of writing, and what is stored of each. */
  weights: { name: string; parts: TensorLayout[] }[]
  /** What the job itself notes of the block; with a number `step` it is of a training whose state is saved behind that step. */
  block: Block
}

/** What is finished of a job. */
export interface Finished {
  /** The number of a journal's entries. */
  entries: number
  /** The same in words, such as '2 blocks' or '40 steps'. */
  words: string
}

/**
 * The journal of a partial folder: a line that says which job it is, then one for each entry. A line is a hash
 * and JSON, so that damage shows; one without its end was being written when the process or the power went, and does not
 * count.
 */
export class Journal<Block> {
  private constructor(
    private readonly handle: FileHandle,
    private end: number,
    private count: number,
    private last: unknown,
  ) {}

  /** Begins the journal of a job in `folder`. Throws what the system throws. */
  static async create<Block>(folder: string, job: JobIdentity): Promise<Journal<Block>> {
    const handle = await open(join(folder, journalFile), 'wx')
    const journal = new Journal<Block>(handle, 0, 0, undefined)
    await journal.#write(job)
    return journal
  }

  /**
   * Goes on with the journal in `folder`, and says what was finished.
   *
   * @throws SparseGptError INVALID_CHECKPOINT when it is damaged; INVALID_OPTION, or for the model INVALID_CHECKPOINT, when
   * it is the journal of another job, naming what differs.
   */
  static async resume<Block>(
    folder: string,
    job: JobIdentity,
  ): Promise<{ journal: Journal<Block>; entries: JournalEntry<Block>[] }> {
    const file = join(folder, journalFile)
    const { lines, end } = await readLines(file)
    const [begun, ...entries] = lines as [JobIdentity, ...JournalEntry<Block>[]]
    checkSame(folder, begun, job)
    const handle = await open(file, 'r+')
    await handle.truncate(end)
    return { journal: new Journal<Block>(handle, end, entries.length, entries.at(-1)), entries }
  }

  get finished(): Finished {
    return finishedOf(this.count, this.last)
  }

  /** Notes what is finished, durably: what is written of it must be durable already. */
  async append(entry: JournalEntry<Block>): Promise<void> {
    await this.#write(entry)
    await this.handle.datasync()
    this.count++
    this.last = entry
  }

  async close(): Promise<void> {
    await this.handle.close()
  }

  async #write(value: unknown): Promise<void> {
    const json = JSON.stringify(value)
    const line = Buffer.from(`${digest(json)} ${json}\n`)
    await writeFully(this.handle, line, this.end)
    this.end += line.length
  }
}

export const nothingFinished: Finished = { entries: 0, words: '0 blocks' }

/** What the journal in `folder` says is finished; nothing without a journal. */
export async function finishedIn(folder: string): Promise<Finished> {
  return finishedBy(await readFile(join(folder, journalFile), 'utf8').catch(() => ''))
}

/** As finishedIn, for a process that is ending. */
export function finishedInSync(folder: string): Finished {
  try {
    return finishedBy(readFileSync(join(folder, journalFile), 'utf8'))
  } catch {
    return nothingFinished
  }
}

function finishedBy(journal: string): Finished {
  const lines = journal.split('\n').slice(1, -1)
  try {
    return finishedOf(lines.length, JSON.parse(lines.at(-1)?.slice(33) ?? 'null'))
  } catch {
    // What is damaged is found when it is gone on with.
    return finishedOf(lines.length, undefined)
  }
}

function finishedOf(entries: number, last: unknown): Finished {
  const { step } = (last as Partial<JournalEntry<{ step?: unknown } | null>> | null | undefined)?.block ?? {}
  const [count, unit] = Number.isSafeInteger(step) ? [Number(step), 'step'] : [entries, 'block']
  return { entries, words: `${count} ${unit}${count === 1 ? '' : 's'}` }
}

const digest = (text: string) => createHash('sha256').update(text).digest('hex').slice(0, 32)

/** The values of the whole lines of a journal, of which there is one at least, and where the last of them ends. */
async function readLines(file: string): Promise<{ lines: unknown[]; end: number }> {
  const bytes = await readFile(file).catch((error: unknown) => {
    throw readError(error, file, 'a partial folder has one; force (--force) begins anew')
  })
  const end = bytes.lastIndexOf('\n') + 1
  const texts = bytes.subarray(0, end).toString('utf8').split('\n').slice(0, -1)
  const lines = texts.map((text, i): unknown => {
    const [hash, json] = [text.slice(0, 32), text.slice(33)]
    if (hash === digest(json)) return JSON.parse(json)
    throw damaged(`${file} is damaged in line ${i + 1}`)
  })
  if (lines.length === 0) throw damaged(`${file} is empty`)
  return { lines, end }
}

/** The error for a partial folder that cannot be resumed. */
export function damaged(what: string, cause?: unknown): SparseGptError {
  const message = `${what}, so the job cannot be resumed: force (--force) begins anew`
  return new SparseGptError('INVALID_CHECKPOINT', message, { cause })
}

function checkSame(folder: string, begun: JobIdentity, job: JobIdentity): void {
  const names = [...new Set([...Object.keys(begun), ...Object.keys(job)])]
  const different = names.filter((name) => begun[name] !== job[name])
  const [first] = different
  if (first === undefined) return
  const differences = different.map(
    (name) => `${name}: ${begun[name] ?? 'not given'} there, ${job[name] ?? 'not given'} here`,
  )
  throw new SparseGptError(
    first.startsWith('model') ? 'INVALID_CHECKPOINT' : 'INVALID_OPTION',
    `resume: ${folder} is of a job that differs in ${differences.join('; ')}: give what was given there, or force (--force) without resume to begin anew`,
  )
}
