import { closeSync, openSync, readSync } from 'node:fs'
import { SparseGptError } from '../errors.js'
import { readError } from './read-error.js'
import { storedBytes, type StoredTensor } from './safetensors.js'

/** The size of the largest storage that is read element by element, in bytes. */
export const maxGatheredBytes = 2 ** 31

/** Whether elements with these strides lie row-major and without gaps. */
export function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  if (shape.includes(0)) return true
  let expected = 1
  for (let i = shape.length - 1; i >= 0; i--) {
    const size = shape[i] ?? 1
    if (size !== 1 && strides[i] !== expected) return false
    expected *= size
  }
  return true
}

const arrays = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array } as const

/**
 * A tensor's bytes, row-major and contiguous, whatever its strides and alignment. Synchronous, because it takes the
 * place of mapping; for the few tensors that cannot be mapped.
 *
 * Throws FILE_NOT_FOUND, INVALID_CHECKPOINT when the file has become shorter.
 */
export function gather(tensor: StoredTensor): Uint8Array {
  const { file, dtype, shape, strides, offset, bytes } = tensor
  if (!strides) return readBytes(file, offset, bytes)
  // Only torch files have strides, and their elements are whole bytes.
  const width = storedBytes[dtype] as keyof typeof arrays
  const reach = shape.reduce((sum, size, i) => sum + (size - 1) * (strides[i] ?? 0), 1)
  const span = readBytes(file, offset, reach * width)
  const source = new arrays[width](span.buffer as ArrayBuffer)
  const target = new arrays[width](bytes / width)
  const index = new Array<number>(shape.length).fill(0)
  let at = 0
  for (let i = 0; i < target.length; i++) {
    target[i] = source[at] as never
    // The next index in row-major order.
    for (let d = shape.length - 1; d >= 0; d--) {
      at += strides[d] ?? 0
      const next = (index[d] ?? 0) + 1
      if (next < (shape[d] ?? 1)) {
        index[d] = next
        break
      }
      at -= next * (strides[d] ?? 0)
      index[d] = 0
    }
  }
  return new Uint8Array(target.buffer)
}

/** The bytes of a range of a file, in an array buffer of their own, so that they are aligned. */
function readBytes(file: string, position: number, length: number): Uint8Array {
  const result = new Uint8Array(length)
  let handle: number | undefined
  try {
    handle = openSync(file, 'r')
    for (let done = 0; done < length;) {
      const count = readSync(handle, result, done, Math.min(length - done, 2 ** 30), position + done)
      if (count === 0) {
        throw new SparseGptError('INVALID_CHECKPOINT', `${file} became shorter while it was read`)
      }
      done += count
    }
    return result
  } catch (error) {
    throw readError(error, file, 'the model must stay where it was opened')
  } finally {
    if (handle !== undefined) closeSync(handle)
  }
}
