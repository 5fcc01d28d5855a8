import { randomBytes } from 'node:crypto'
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { lstat, open, readdir, readFile, rm } from 'node:fs/promises'
import { hostname } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { SparseGptError } from '../errors.js'
import { finishedIn, finishedInSync, journalFile, nothingFinished, type Finished } from './journal.js'
import { systemCode } from './read-error.js'
import { syncFolder } from './sync-folder.js'

const ownerFile = 'owner.json'
const publicationFile = 'publication'

/** The process that fills a partial folder. */
interface Owner {
  /** The process's number. */
  pid: number
  /** The system in which the number means this process. */
  machine: string
  /** The process's start, by the system's clock, since numbers are used again. */
  started: string
}

/** A partial folder that lies beside an output. */
export interface FoundPartial {
  /** The absolute path of the folder. */
  path: string
  /**
   * Who fills it: a process that lives, nobody (its process or worker thread has ended, or has left it to be resumed), or a
   * process of another machine, which cannot be seen from here.
   */
  owner: 'living' | 'none' | 'elsewhere'
  /** The owner as a message calls it. */
  ownerName: string
  /** What is finished in it; nothing when it is published. */
  finished: Finished
  /** Whether its files have become the output. */
  published: boolean
}

/**
 * The folder beside an output in which a job works: the files to be (`files`), the journal of what is finished, and a
 * note of the process that owns it. It is called `<out>.partial-<pid>-<random>`.
 */
export class PartialFolder {
  /** The owner's note, which stays open while the folder is filled: a worker that is terminated leaves its process alive. */
  #note: number | undefined

  /** `path`: the absolute path of the folder. */
  private constructor(readonly path: string) {}

  /** The absolute path of the folder of the files to be. */
  get files(): string {
    return join(this.path, 'model')
  }

  /**
   * Decides about the partial folders that earlier jobs have left of the output `out`, an absolute path: which one is to be
   * gone on with, if `resume` is true and something is finished in one, and which are to be removed.
   *
   * @throws SparseGptError OUTPUT_EXISTS when a process that lives fills one, or when there is one that is worth to be
   * resumed and neither `resume` nor `force` is true.
   */
  static async choose(
    out: string,
    { resume, force }: { resume: boolean; force: boolean },
  ): Promise<{ resumed: string | undefined; removed: FoundPartial[] }> {
    const found = await PartialFolder.find(out)
    checkNoneLives(out, found)
    const [most] = found
      .filter(({ finished }) => finished.entries > 0)
      .sort((a, b) => b.finished.entries - a.finished.entries)
    const kept = most ?? found.find(({ owner }) => owner === 'elsewhere')
    if (kept && !resume && !force) {
      const { path, owner, ownerName, finished } = kept
      const whose = owner === 'elsewhere' ? `${ownerName}, if that has ended,` : 'an earlier job'
      const message = `${whose} has left ${path} with ${finished.words} finished: resume (--resume) goes on with it, force (--force) removes it`
      throw new SparseGptError('OUTPUT_EXISTS', message)
    }
    const resumed = resume ? most?.path : undefined
    return { resumed, removed: found.filter(({ path }) => path !== resumed) }
  }

  /**
   * Removes what nobody misses: what is left of jobs that have put `out` in its place and ended before they had tidied up,
   * and of jobs that have ended before anything was finished.
   */
  static async removeWorthless(out: string): Promise<void> {
    for (const { path, owner, finished, published } of await PartialFolder.find(out)) {
      const worthless = owner === 'none' ? finished.entries === 0 : owner === 'elsewhere' && published
      // Whether it can be removed does not matter to the job.
      if (worthless) await removePartial(path).catch(() => undefined)
    }
  }

  /** The partial folders of the output `out`, an absolute path, by name. */
  private static async find(out: string): Promise<FoundPartial[]> {
    const [parent, prefix] = [dirname(out), `${basename(out)}.partial-`]
    const names = await readdir(parent).catch(() => [])
    const own = names.filter(
      (name) => name.startsWith(prefix) && /^\d+-[0-9a-f]{8}$/.test(name.slice(prefix.length)),
    )
    return Promise.all(own.sort().map((name) => look(out, join(parent, name))))
  }

  /** Makes a new one, at once. Throws what the system throws. */
  static create(out: string): PartialFolder {
    const partial = new PartialFolder(freshName(out))
    mkdirSync(partial.path)
    partial.#own()
    mkdirSync(partial.files)
    return partial
  }

  /** Takes over a folder that nobody fills, at once. Throws OUTPUT_EXISTS when another process was quicker. */
  static takeOver(out: string, found: string): PartialFolder {
    const partial = new PartialFolder(freshName(out))
    try {
      // Of two processes only one can rename it.
      renameSync(found, partial.path)
      partial.#own()
    } catch (error) {
      if (systemCode(error) !== 'ENOENT') throw error
      const message = `another process has taken over the partial folder ${found} at this moment: let it finish`
      throw new SparseGptError('OUTPUT_EXISTS', message, { cause: error })
    }
    return partial
  }

  /** Throws OUTPUT_EXISTS when a living process has made another partial folder of `out` at the same time. */
  async checkAlone(out: string): Promise<void> {
    const found = await PartialFolder.find(out)
    checkNoneLives(
      out,
      found.filter(({ path }) => path !== this.path),
    )
  }

  /** Notes, durably, that `files` is about to become the output, so that what is found in its place afterwards is not taken for it. */
  async announcePublication(): Promise<void> {
    const handle = await open(join(this.path, publicationFile), 'w')
    try {
      await handle.writeFile(await inode(this.files))
      await handle.sync()
    } finally {
      await handle.close()
    }
    await syncFolder(this.path)
  }

  /** Leaves the folder to be resumed, by this process or another. */
  async release(): Promise<void> {
    await rm(join(this.path, ownerFile), { force: true })
    this.#disown()
  }

  /** Removes the folder. */
  async remove(): Promise<void> {
    try {
      await removePartial(this.path)
    } finally {
      this.#disown()
    }
  }

  /** Removes the folder, or leaves it to be resumed if something is finished in it, at once: the process is ending. */
  endSync(): 'removed' | 'left' {
    this.#disown()
    if (finishedInSync(this.path).entries > 0) {
      rmSync(join(this.path, ownerFile), { force: true })
      return 'left'
    }
    // What other threads are still writing can come between.
    rmSync(this.path, { recursive: true, force: true, maxRetries: 3 })
    return 'removed'
  }

  #own(): void {
    const owner: Owner = { pid: process.pid, machine: machine(), started: startOf(process.pid) ?? '' }
    this.#note = openSync(join(this.path, ownerFile), 'w')
    writeFileSync(this.#note, JSON.stringify(owner))
  }

  #disown(): void {
    if (this.#note !== undefined) closeSync(this.#note)
    this.#note = undefined
  }
}

/** A name that no folder has. */
const freshName = (out: string) => `${out}.partial-${process.pid}-${randomBytes(4).toString('hex')}`

/** Removes a partial folder; the journal first, as without it what is left after a kill is no longer resumed. */
export async function removePartial(path: string): Promise<void> {
  await rm(join(path, journalFile), { recursive: true, force: true })
  await rm(path, { recursive: true, force: true })
}

function checkNoneLives(out: string, found: readonly FoundPartial[]): void {
  const living = found.find(({ owner }) => owner === 'living')
  if (!living) return
  const message = `${living.ownerName} is writing ${out} (in ${living.path}): let it finish, stop it, or give another folder`
  throw new SparseGptError('OUTPUT_EXISTS', message)
}

async function look(out: string, path: string): Promise<FoundPartial> {
  const owner = await readOwner(join(path, ownerFile))
  const published = await isPublished(out, path)
  const finished = published ? nothingFinished : await finishedIn(path)
  if (owner?.machine !== machine()) {
    const ownerName = `process ${owner?.pid ?? '?'} of another machine or container`
    return { path, owner: owner ? 'elsewhere' : 'none', ownerName, finished, published }
  }
  const started = startOf(owner.pid)
  const same = started !== undefined && started === owner.started
  const living = same && hasOpen(owner.pid, join(path, ownerFile))
  return { path, owner: living ? 'living' : 'none', ownerName: `process ${owner.pid}`, finished, published }
}

/** Whether the files have become the output: they have gone, or what the output replaced lies in their place. */
async function isPublished(out: string, path: string): Promise<boolean> {
  const announced = await readFile(join(path, publicationFile), 'utf8').catch(() => undefined)
  if (announced === undefined) return false
  const files = await inode(join(path, 'model')).catch(() => undefined)
  if (files === undefined) return true
  const exists = await inode(out).catch(() => undefined)
  return exists !== undefined && files !== announced
}

const inode = async (path: string) => String((await lstat(path, { bigint: true })).ino)

async function readOwner(file: string): Promise<Owner | undefined> {
  const text = await readFile(file, 'utf8').catch(() => '')
  try {
    const owner = JSON.parse(text) as Partial<Owner> | null
    const { pid, machine: at, started } = owner ?? {}
    if (typeof pid !== 'number' || typeof at !== 'string' || typeof started !== 'string') return undefined
    return { pid, machine: at, started }
  } catch {
    return undefined
  }
}

/** The name of the system in which a process number means one process: the host since its start, and the container. */
function machine(): string {
  const boot = attempt(() => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim())
  const container = attempt(() => readlinkSync('/proc/self/ns/pid'))
  return [hostname(), boot, container].filter(Boolean).join(' ')
}

/** When a process started, in the system's own words, '' where they are unknown; undefined when there is no such process. */
function startOf(pid: number): string | undefined {
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (systemCode(error) !== 'EPERM') return undefined
  }
  const stat = attempt(() => readFileSync(`/proc/${pid}/stat`, 'utf8'))
  // The second field, the program's name in parentheses, may hold anything; the state and the start follow it.
  const fields = stat?.slice(stat.lastIndexOf(')') + 2).split(' ') ?? []
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined
  return fields[19] ?? ''
}

/** Whether a process has a file open; true where the system does not let that be seen. */
function hasOpen(pid: number, file: string): boolean {
  const folder = `/proc/${pid}/fd`
  const open = attempt(() => readdirSync(folder))
  if (!open) return true
  const identity = (path: string) =>
    attempt(() => {
      const { dev, ino } = statSync(path, { bigint: true })
      return `${dev} ${ino}`
    })
  const wanted = identity(file)
  return wanted !== undefined && open.some((fd) => identity(join(folder, fd)) === wanted)
}

function attempt<T>(body: () => T): T | undefined {
  try {
    return body()
  } catch {
    return undefined
  }
}
