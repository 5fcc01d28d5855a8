import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { readError } from './read-error.js'
import { storedParts, type StoredTensor } from './safetensors.js'

const sampleBytes = 4096

/**
 * A hash by which changed tensors are noticed without reading all of them: of their names, dtypes, shapes and places, and
 * of the first and the last 4 KiB of each. Throws FILE_NOT_FOUND.
 */
export async function fingerprint(tensors: Iterable<StoredTensor>): Promise<string> {
  const files = new Map<string, StoredTensor[]>()
  for (const tensor of [...tensors].flatMap(storedParts)) {
    const list = files.get(tensor.file)
    if (list) list.push(tensor)
    else files.set(tensor.file, [tensor])
  }
  const hash = createHash('sha256')
  const sample = Buffer.alloc(2 * sampleBytes)
  for (const [file, list] of files) {
    try {
      const handle = await open(file, 'r')
      try {
        for (const { name, dtype, shape, offset, bytes, strides } of list) {
          hash.update(JSON.stringify([name, dtype, shape, offset, bytes, strides]))
          // What is short is read as a whole.
          const whole = bytes <= sample.length
          const reads = whole
            ? [[offset, bytes]]
            : [
                [offset, sampleBytes],
                [offset + bytes - sampleBytes, sampleBytes],
              ]
          for (const [position = 0, length = 0] of reads) {
            const { bytesRead } = await handle.read(sample, 0, length, position)
            hash.update(sample.subarray(0, bytesRead))
          }
        }
      } finally {
        await handle.close()
      }
    } catch (error) {
      throw readError(error, file, 'the source model must stay where it was opened')
    }
  }
  return hash.digest('hex').slice(0, 32)
}
