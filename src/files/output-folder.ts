import { randomBytes } from 'node:crypto'
import { lstat, mkdir, open, realpath, rename, rm, rmdir, statfs } from 'node:fs/promises'
import { dirname, isAbsolute, relative, resolve, sep } from 'node:path'
import { SparseGptError } from '../errors.js'
import { reason, systemCode } from './read-error.js'

/**
 * A folder that is filled beside its final place and appears there complete, by one rename, or not at all. (A rename is
 * atomic only within a file system, hence the sibling.)
 */
export class OutputFolder {
  /** The absolute path at which the folder appears. */
  readonly out: string
  readonly #force: boolean
  /** The absolute path of the folder that the files are written to until `publish`. */
  readonly temporary: string
  /** The topmost parent folder that was created, to be taken away again on `discard`. */
  readonly #createdParent: string | undefined

  private constructor(out: string, force: boolean, temporary: string, createdParent: string | undefined) {
    this.out = out
    this.#force = force
    this.temporary = temporary
    this.#createdParent = createdParent
  }

  /**
   * Checks `out` and creates the temporary folder for files of `bytes` bytes in all. `keep` are the files and folders,
   * of the source, that replacing `out` must not remove.
   *
   * @throws SparseGptError INVALID_OPTION, OUTPUT_EXISTS or WRITE_FAILED; nothing has been created then.
   */
  static async create(out: string, options: { force: boolean; keep: string[]; bytes: number }) {
    const path = resolve(out)
    await checkKeeps(path, options.keep)
    await checkReplaceable(path, options.force)
    const parent = dirname(path)
    try {
      await checkSpace(path, await existingAncestor(parent), options.bytes)
      const createdParent = await mkdir(parent, { recursive: true })
      const temporary = `${path}.partial-${process.pid}-${randomBytes(4).toString('hex')}`
      await mkdir(temporary)
      return new OutputFolder(path, options.force, temporary, createdParent)
    } catch (error) {
      if (error instanceof SparseGptError) throw error
      throw new SparseGptError('WRITE_FAILED', `cannot create the output folder ${path}: ${reason(error)}`, {
        cause: error,
      })
    }
  }

  /** Moves the finished folder to `out`. On failure what was at `out` before is there again. */
  async publish(): Promise<void> {
    await syncFolder(this.temporary)
    // Looked at again: another process may have made `out` in the meantime, and rename replaces an empty folder.
    const exists = await checkReplaceable(this.out, this.#force)
    const aside = `${this.out}.replaced-${process.pid}-${randomBytes(4).toString('hex')}`
    if (exists) await rename(this.out, aside)
    try {
      await rename(this.temporary, this.out)
    } catch (error) {
      if (exists) await rename(aside, this.out)
      throw error
    }
    await syncFolder(dirname(this.out))
    if (exists) {
      // The new folder stands, so the job is done even if the old one cannot be removed.
      await rm(aside, { recursive: true, force: true }).catch((error: unknown) => {
        process.emitWarning(`the replaced folder ${aside} could not be removed: ${reason(error)}`)
      })
    }
  }

  /** Removes the temporary folder, and the parents that were created for it if they are empty. */
  async discard(): Promise<void> {
    await rm(this.temporary, { recursive: true, force: true })
    if (this.#createdParent === undefined) return
    for (let folder = dirname(this.out); isInside(folder, this.#createdParent); folder = dirname(folder)) {
      try {
        await rmdir(folder)
      } catch {
        // Somebody else has put something there.
        return
      }
    }
  }
}

/** Checks that removing `out` would remove none of `keep`. Throws INVALID_OPTION. */
async function checkKeeps(out: string, keep: string[]): Promise<void> {
  const target = await realpath(out).catch(() => undefined)
  if (target === undefined) return
  for (const path of keep) {
    const source = await realpath(path).catch(() => resolve(path))
    if (source === target) {
      throw new SparseGptError(
        'INVALID_OPTION',
        `out: ${out} is the folder of the source model: give another folder`,
      )
    }
    if (isInside(source, target)) {
      throw new SparseGptError(
        'INVALID_OPTION',
        `out: ${out} contains the source model (${path}) and cannot be replaced: give another folder`,
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
  if (!stats.isDirectory() && !stats.isSymbolicLink()) {
    throw new SparseGptError(
      'OUTPUT_EXISTS',
      `${out} is not a folder: force (--force) replaces only a folder; give another one`,
    )
  }
  return true
}

async function checkSpace(out: string, folder: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder)
  const free = bavail * bsize
  if (free < bytes) {
    throw new SparseGptError(
      'WRITE_FAILED',
      `the disk of ${out} is too full: ${bytes} bytes (${gigabytes(bytes)}) are needed, ` +
        `${free} bytes (${gigabytes(free)}) are free`,
    )
  }
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(2)} GB`

async function existingAncestor(folder: string): Promise<string> {
  for (let at = folder; ; at = dirname(at)) {
    const exists = await lstat(at).then(
      () => true,
      () => false,
    )
    if (exists || dirname(at) === at) return at
  }
}

/** Makes renames and new names in `folder` durable. Not every system can open a folder; those need no such call. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => undefined)
  await handle?.sync().catch(() => undefined)
  await handle?.close()
}

/** Whether `path` is `folder` or lies below it; both absolute. */
function isInside(path: string, folder: string): boolean {
  const way = relative(folder, path)
  return way === '' || (way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way))
}
