import type { FileHandle } from 'node:fs/promises'
import { SparseGptError } from '../errors.js'

const chunkBytes = 8 * 1024 * 1024

/**
 * Copies `bytes` bytes from one open file to another in chunks. `onChunk` is called before each and may throw to stop.
 *
 * @throws SparseGptError INVALID_CHECKPOINT when `from` ends early; whatever reading and writing throw.
 */
export async function copyRange(
  from: { handle: FileHandle; position: number; file: string },
  to: { handle: FileHandle; position: number },
  bytes: number,
  onChunk: () => void,
): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.min(bytes, chunkBytes))
  for (let done = 0; done < bytes;) {
    onChunk()
    const wanted = Math.min(buffer.length, bytes - done)
    const { bytesRead } = await from.handle.read(buffer, 0, wanted, from.position + done)
    if (bytesRead === 0) {
      throw new SparseGptError('INVALID_CHECKPOINT', `${from.file} became shorter while it was copied`)
    }
    await writeFully(to.handle, buffer.subarray(0, bytesRead), to.position + done)
    done += bytesRead
  }
}

/**
 * Writes all of `data` from the byte `position` of the file on: a single write may take only a part, for example when
 * the disk is nearly full.
 */
export async function writeFully(handle: FileHandle, data: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < data.length;) {
    done += (await handle.write(data, done, data.length - done, position + done)).bytesWritten
  }
}
