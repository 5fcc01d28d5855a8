import { randomBytes } from 'node:crypto'
import { open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { SparseGptError } from '../errors.js'
import { reason } from './read-error.js'
import { syncFolder } from './sync-folder.js'

/** Writes a file, or replaces it at once: whoever reads it sees the old text or the new one. Throws WRITE_FAILED. */
export async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.partial-${randomBytes(4).toString('hex')}`
  try {
    const handle = await open(temporary, 'wx')
    try {
      await handle.writeFile(text)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, path)
    await syncFolder(dirname(path))
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined)
    throw new SparseGptError('WRITE_FAILED', `cannot write ${path}: ${reason(error)}`, { cause: error })
  }
}
