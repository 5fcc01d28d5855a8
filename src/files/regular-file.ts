import { constants as buffers } from 'node:buffer'
import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { SparseGptError } from '../errors.js'
import { readError, systemCode } from './read-error.js'

/**
 * Opens a file for reading. A pipe, a device or a socket is refused: reading it might wait, or go on, for ever.
 *
 * Throws FILE_NOT_FOUND, with `advice` when there is no such file.
 */
export async function openRegularFile(
  file: string,
  advice: string,
): Promise<{ handle: FileHandle; bytes: number }> {
  // Without O_NONBLOCK, opening a pipe waits for someone who writes to it. Windows has no such flag.
  const flags = constants.O_RDONLY | ((constants as { O_NONBLOCK?: number }).O_NONBLOCK ?? 0)
  const handle = await open(file, flags).catch((error: unknown) => {
    throw readError(error, file, advice)
  })
  try {
    const stats = await handle.stat()
    if (stats.isFile()) return { handle, bytes: stats.size }
    const what = stats.isDirectory() ? 'a folder' : 'a pipe or a device'
    throw new SparseGptError('FILE_NOT_FOUND', `${file} is ${what}, not a file: ${advice}`)
  } catch (error) {
    await handle.close()
    throw readError(error, file, advice)
  }
}

/**
 * The contents of a file that openRegularFile opens.
 *
 * Throws FILE_NOT_FOUND, also when it cannot be read; `tooLong` (by default INVALID_CHECKPOINT) for more than `maxBytes`.
 */
export async function readRegularFile(
  file: string,
  {
    advice,
    maxBytes = buffers.MAX_LENGTH,
    tooLong = () =>
      new SparseGptError(
        'INVALID_CHECKPOINT',
        `${file} has more than the ${maxBytes} bytes that are allowed`,
      ),
  }: { advice: string; maxBytes?: number; tooLong?: () => SparseGptError },
): Promise<Buffer> {
  const { handle, bytes } = await openRegularFile(file, advice)
  try {
    if (bytes > maxBytes) throw tooLong()
    return await handle.readFile()
  } catch (error) {
    throw readError(error, file, advice)
  } finally {
    await handle.close()
  }
}

/** The text of a file that need not be there; undefined where it is not. Throws as readRegularFile does. */
export async function readIfThere(file: string, maxBytes: number): Promise<string | undefined> {
  try {
    return (await readRegularFile(file, { maxBytes, advice: 'a readable file is needed' })).toString('utf8')
  } catch (error) {
    if (systemCode((error as Error).cause) === 'ENOENT') return undefined
    throw error
  }
}
