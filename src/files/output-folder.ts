import { randomBytes } from 'node:crypto'
import { constants, existsSync, mkdirSync, renameSync, rmdirSync } from 'node:fs'
import { access, lstat, readdir, realpath, rename, rm, rmdir, stat, statfs } from 'node:fs/promises'
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path'
import { SparseGptError } from '../errors.js'
import { nativeAddon } from '../native/addon.js'
import { native } from '../native/failure.js'
import { sizeText } from '../sizes.js'
import { PartialFolder, removePartial } from './partial-folder.js'
import { reason, systemCode } from './read-error.js'
import { syncFolder } from './sync-folder.js'

/**
 * A folder that is filled beside its final place and appears there complete, by one rename, or not at all. (A rename is
 * atomic only within a file system, hence the sibling.) A process that ends by itself leaves nothing there but what can be
 * resumed.
 */
export class OutputFolder {
  /** The absolute path at which the folder appears. */
  readonly out: string
  readonly #force: boolean
  /** The folder beside `out` that holds the files, and what is needed to resume. */
  readonly partial: PartialFolder
  /** Whether `partial` is of an earlier job that is gone on with. */
  readonly resumed: boolean
  /** The topmost parent folder that was created, to be taken away again on `discard`. */
  readonly #createdParent: string | undefined
  /** The path that a replaced folder has until the new one stands, where the two cannot change places at once. */
  readonly #aside: string

  private constructor(
    out: string,
    force: boolean,
    partial: PartialFolder,
    resumed: boolean,
    createdParent: string | undefined,
  ) {
    this.out = out
    this.#force = force
    this.partial = partial
    this.resumed = resumed
    this.#createdParent = createdParent
    this.#aside = `${out}.replaced-${randomBytes(4).toString('hex')}`
    if (unfinished.size === 0) process.on('exit', endUnfinished)
    unfinished.add(this)
  }

  /** The absolute path of the folder that the files are written to until `publish`. */
  get temporary(): string {
    return this.partial.files
  }

  /**
   * Checks whether a job may write `out`, as far as that can be said before anything is read, and removes what is left there of
   * jobs that had nothing finished.
   *
   * @throws SparseGptError INVALID_OPTION or OUTPUT_EXISTS.
   */
  static async check(out: string, options: { force: boolean; resume: boolean }): Promise<void> {
    const path = resolve(out)
    await PartialFolder.removeWorthless(path)
    await checkReplaceable(path, options.force)
    await PartialFolder.choose(path, options)
  }

  /** Checks all that `create` checks, and that the folder around `out` can be written; writes nothing. Throws as it does. */
  static async rehearse(
    out: string,
    options: { force: boolean; resume: boolean; keep: readonly KeptPath[]; bytes: number },
  ): Promise<void> {
    const path = resolve(out)
    await checkKeeps(path, options.keep)
    await checkReplaceable(path, options.force)
    await PartialFolder.choose(path, options)
    const parent = await existingAncestor(dirname(path))
    await access(parent, constants.W_OK).catch((error: unknown) => {
      const message = `out: ${path} cannot be created: ${reason(error)}`
      throw new SparseGptError('WRITE_FAILED', message, { cause: error })
    })
    await checkSpace(path, parent, options.bytes)
  }

  /**
   * Checks `out` and creates the temporary folder for files of `bytes` bytes in all, or goes on with the one that an
   * earlier job has left, if `resume` is true and there is one. `keep` are the files and folders of the models read, which
   * replacing `out` must not remove.
   *
   * @throws SparseGptError INVALID_OPTION, OUTPUT_EXISTS or WRITE_FAILED; nothing has been created then.
   */
  static async create(
    out: string,
    options: { force: boolean; resume?: boolean; keep: readonly KeptPath[]; bytes: number },
  ): Promise<OutputFolder> {
    const { force, resume = false } = options
    const path = resolve(out)
    await checkKeeps(path, options.keep)
    await PartialFolder.removeWorthless(path)
    await checkReplaceable(path, force)
    const { resumed, removed } = await PartialFolder.choose(path, { force, resume })
    const parent = dirname(path)
    let folder: OutputFolder | undefined
    try {
      for (const { path: old } of removed) await removePartial(old)
      const there =
        resumed === undefined ? 0 : (await allocated(resumed)) + (await allocated(join(resumed, 'model')))
      await checkSpace(path, await existingAncestor(parent), options.bytes - there)
      // In one turn of the event loop, so that whatever ends the process later finds the folder among the unfinished ones.
      const createdParent = mkdirSync(parent, { recursive: true })
      const partial =
        resumed === undefined ? PartialFolder.create(path) : PartialFolder.takeOver(path, resumed)
      folder = new OutputFolder(path, force, partial, resumed !== undefined, createdParent)
      await partial.checkAlone(path)
      await recoverReplaced(path)
      // Again: it may have come back.
      await checkReplaceable(path, force)
      return folder
    } catch (error) {
      const ended = folder?.resumed ? folder.release() : folder?.discard()
      await ended?.catch(() => undefined)
      if (error instanceof SparseGptError) throw error
      throw new SparseGptError('WRITE_FAILED', `cannot create the output folder ${path}: ${reason(error)}`, {
        cause: error,
      })
    }
  }

  /** Moves the finished folder to `out`. On failure what was at `out` before is there. */
  async publish(): Promise<void> {
    await syncFolder(this.temporary)
    await this.partial.announcePublication()
    // Looked at again: another process may have made `out` in the meantime, and rename replaces an empty folder.
    const exists = await checkReplaceable(this.out, this.#force)
    if (exists) await this.#replace()
    else await rename(this.temporary, this.out)
    await this.syncParents()
    // The new folder stands, so the job is done even if the old one, which may have changed places with it, cannot be removed.
    const removals = [
      [this.#aside, () => removePartial(this.#aside)],
      [this.partial.path, () => this.partial.remove()],
    ] as const
    for (const [path, remove] of removals) {
      await remove().catch((error: unknown) => {
        process.emitWarning(`${path}, which is no longer needed, could not be removed: ${reason(error)}`)
      })
    }
    this.#end()
  }

  /** Puts the finished folder in the place of the one at `out`, which is never without a folder if the system can do so. */
  async #replace(): Promise<void> {
    if (native(() => nativeAddon().exchangePaths(this.temporary, this.out))) return
    await rename(this.out, this.#aside)
    try {
      await rename(this.temporary, this.out)
    } catch (error) {
      await rename(this.#aside, this.out)
      throw error
    }
  }

  /** Makes durable what is new in the folder that `out` lies in, and the parents that were created for it. */
  async syncParents(): Promise<void> {
    for (const folder of [this.out, ...this.#createdParents()]) await syncFolder(dirname(folder))
  }

  /** Leaves the temporary folder to be resumed. */
  async release(): Promise<void> {
    await this.partial.release()
    this.#end()
  }

  /** Removes the temporary folder, and the parents that were created for it if they are empty. */
  async discard(): Promise<void> {
    await this.partial.remove()
    this.#end()
    for (const folder of this.#createdParents()) {
      try {
        await rmdir(folder)
      } catch {
        // Somebody else has put something there.
        return
      }
    }
  }

  /** Does what `release` or `discard` does, and puts back what is half replaced, at once: the process is ending. */
  endSync(): void {
    try {
      if (existsSync(this.#aside) && !existsSync(this.out)) renameSync(this.#aside, this.out)
      if (this.partial.endSync() === 'left') return
      for (const folder of this.#createdParents()) rmdirSync(folder)
    } catch {
      // There is nobody left to tell.
    }
  }

  *#createdParents(): Generator<string> {
    if (this.#createdParent === undefined) return
    for (let at = dirname(this.out); isInside(at, this.#createdParent); at = dirname(at)) yield at
  }

  #end(): void {
    unfinished.delete(this)
    if (unfinished.size === 0) process.off('exit', endUnfinished)
  }
}

/** The folders of this process that are neither published nor released nor discarded. */
const unfinished = new Set<OutputFolder>()

function endUnfinished(): void {
  for (const folder of unfinished) folder.endSync()
}

/** Puts back, or removes where `out` stands, what a process that died while it replaced `out` had moved aside. */
async function recoverReplaced(out: string): Promise<void> {
  const prefix = `${basename(out)}.replaced-`
  for (const name of await readdir(dirname(out))) {
    if (!name.startsWith(prefix) || !/^[0-9a-f]{8}$/.test(name.slice(prefix.length))) continue
    const aside = join(dirname(out), name)
    if (existsSync(out)) await rm(aside, { recursive: true, force: true })
    else await rename(aside, out)
  }
}

/** A file or folder of a model that is read. */
export interface KeptPath {
  path: string
  model: 'source' | 'dense'
}

/** Checks that removing `out` would remove none of `keep`. Throws INVALID_OPTION. */
async function checkKeeps(out: string, keep: readonly KeptPath[]): Promise<void> {
  const target = await realpath(out).catch(() => undefined)
  if (target === undefined) return
  for (const { path, model } of keep) {
    const source = await realpath(path).catch(() => resolve(path))
    if (source === target) {
      throw new SparseGptError(
        'INVALID_OPTION',
        `out: ${out} is the folder of the ${model} model: give another folder`,
      )
    }
    if (isInside(source, target)) {
      throw new SparseGptError(
        'INVALID_OPTION',
        `out: ${out} contains the ${model} model (${path}) and cannot be replaced: give another folder`,
      )
    }
  }
}

/** Whether there is something at `out`, which may be replaced. Throws OUTPUT_EXISTS when it may not, INVALID_OPTION. */
async function checkReplaceable(out: string, force: boolean): Promise<boolean> {
  const stats = await lstat(out).catch((error: unknown) => {
    if (systemCode(error) === 'ENOENT') return undefined
    const message = `out: ${out} cannot be used: ${reason(error)}`
    throw new SparseGptError('INVALID_OPTION', message, { cause: error })
  })
  if (!stats) return false
  if (!force) {
    throw new SparseGptError(
      'OUTPUT_EXISTS',
      `${out} exists: give another folder, or force (--force) to replace it`,
    )
  }
  // Of a link only the link itself is replaced.
  if (stats.isSymbolicLink()) return true
  if (!stats.isDirectory()) {
    throw new SparseGptError(
      'OUTPUT_EXISTS',
      `${out} is not a folder: force (--force) replaces only a folder; give another one`,
    )
  }
  if (!(await isModelFolder(out))) {
    throw new SparseGptError(
      'OUTPUT_EXISTS',
      `${out} is not a model folder (config.json and weights): force (--force) replaces only such a folder, or an empty one; give another one`,
    )
  }
  return true
}

/** Whether replacing the folder loses a model, or nothing at all. */
async function isModelFolder(folder: string): Promise<boolean> {
  const names = await readdir(folder)
  const weights = /\.(safetensors|bin)(\.index\.json)?$/
  return names.length === 0 || (names.includes('config.json') && names.some((name) => weights.test(name)))
}

async function checkSpace(out: string, folder: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder)
  const free = bavail * bsize
  if (free < bytes) {
    throw new SparseGptError(
      'WRITE_FAILED',
      `the disk of ${out} is too full: ${bytes} bytes (${sizeText(bytes)}) are needed, ` +
        `${free} bytes (${sizeText(free)}) are free`,
    )
  }
}

/** The space that the files in `folder` take, in bytes. */
async function allocated(folder: string): Promise<number> {
  const names = await readdir(folder).catch(() => [])
  const sizes = await Promise.all(names.map(async (name) => (await stat(join(folder, name))).blocks * 512))
  return sizes.reduce((a, b) => a + b, 0)
}

async function existingAncestor(folder: string): Promise<string> {
  for (let at = folder; ; at = dirname(at)) {
    const exists = await lstat(at).then(
      () => true,
      () => false,
    )
    if (exists || dirname(at) === at) return at
  }
}

/** Whether `path` is `folder` or lies below it; both absolute. */
function isInside(path: string, folder: string): boolean {
  const way = relative(folder, path)
  return way === '' || (way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way))
}
