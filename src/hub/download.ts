import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { open, rm, type FileHandle } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { abortable } from '../abort.js'
import { writeFully } from '../files/copy-range.js'
import { reason } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'
import { isTransient } from './failure.js'
import { HubTimeout } from './http.js'

/** The number of tries without a single new byte before giving up. */
const maxTries = 5
const firstPause = 500 // milliseconds; doubles with every try

/** Gives the bytes of a file from the byte `start` on, as a response's body. */
type ByteSource = (start: number) => Promise<AsyncIterable<Uint8Array>>

/**
 * Downloads into `file`, going on where an earlier attempt, of this or another process, has stopped. Two processes may
 * do so at once: both write the same bytes at the same places.
 *
 * `expected` are the size in bytes and the hash that the hub names; `onBytes` is called with the number of bytes that
 * are there so far. Throws what `source` throws if trying again does not help, DOWNLOAD_FAILED when the contents are
 * not what was announced (the file is removed then), WRITE_FAILED, ABORTED.
 */
export async function download(
  file: string,
  expected: { size: number; oid: string },
  source: ByteSource,
  onBytes: (bytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  // Not opened for appending: the position is ours, whatever another process adds.
  const handle = await open(file, constants.O_RDWR | constants.O_CREAT).catch((error: unknown) => {
    throw writeFailed(file, error)
  })
  try {
    let position = (await handle.stat()).size
    if (position > expected.size) {
      await handle.truncate(0)
      position = 0
    }
    onBytes(position)
    for (let tries = 1; position < expected.size;) {
      abortable(signal)
      const before = position
      try {
        position = await transfer(file, handle, position, expected.size, source, onBytes, signal)
      } catch (error) {
        abortable(signal)
        position = Math.max(before, Math.min((await handle.stat()).size, expected.size))
        // Silence has been waited for already: one more try, not four.
        tries = position > before ? 1 : tries + (error instanceof HubTimeout ? maxTries - 1 : 1)
        if (!isTransient(error) || tries > maxTries) throw error
        await sleep(firstPause * 2 ** (tries - 1))
      }
    }
    await handle.sync()
    const oid = await objectId(handle, expected)
    if (oid !== expected.oid) {
      await rm(file, { force: true })
      const message = `the download of ${file} is damaged (its hash is ${oid}, not ${expected.oid}) and was removed: try again`
      throw new SparseGptError('DOWNLOAD_FAILED', message)
    }
  } finally {
    await handle.close()
  }
}

/** Copies the bytes from `position` on; returns where it ended. Throws when the connection drops, or ends early. */
async function transfer(
  file: string,
  handle: FileHandle,
  position: number,
  size: number,
  source: ByteSource,
  onBytes: (bytes: number) => void,
  signal: AbortSignal | undefined,
): Promise<number> {
  for await (const chunk of await source(position)) {
    abortable(signal)
    if (position + chunk.length > size) {
      throw new SparseGptError('DOWNLOAD_FAILED', `the server sent more than the ${size} bytes of ${file}`)
    }
    try {
      await writeFully(handle, chunk, position)
    } catch (error) {
      throw writeFailed(file, error)
    }
    position += chunk.length
    onBytes(position)
  }
  if (position < size) throw new Error(`the connection ended after ${position} of ${size} bytes`)
  return position
}

/**
 * The id of a file in the hub's storage: SHA-256 of large files, git's blob id (SHA-1) of small ones. It is read by its
 * handle, because another process that was faster has moved the file.
 */
async function objectId(handle: FileHandle, { oid, size }: { oid: string; size: number }): Promise<string> {
  const git = oid.length === 40
  const hash = createHash(git ? 'sha1' : 'sha256')
  if (git) hash.update(`blob ${size}\0`)
  const contents = handle.createReadStream({ start: 0, autoClose: false, highWaterMark: 2 ** 20 })
  for await (const chunk of contents) hash.update(chunk as Buffer)
  return hash.digest('hex')
}

function writeFailed(file: string, error: unknown): SparseGptError {
  return new SparseGptError('WRITE_FAILED', `cannot write ${file}: ${reason(error)}`, { cause: error })
}
