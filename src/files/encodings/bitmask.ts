import type { Device, Tensor } from '../../native/device.js'
import { packed } from '../checkpoint.js'
import { packedLayouts } from '../packed.js'
import { tensorBytes } from '../safetensors.js'
import { dense } from './dense.js'
import type { EncodedTensor, Encoding, PrunedWeight } from './encoding.js'

/**
 * The encoding that stores the values that are not zero and a bit for every element (sparse-bitmask of compressed-tensors 0.9 to
 * 0.14). It keeps every bit: a negative zero counts as a value. A matrix that would not become smaller stays as it is.
 */
export const bitmask: Encoding = {
  format: packed,
  layout: (weight) => {
    const [rows = 0, columns = 0] = weight.shape
    return Object.values(packedLayouts(weight, rows * columns)).map((part) => ({ ...part, varies: true }))
  },
  encode: async (device, weight) => {
    const made: Tensor[] = []
    try {
      const parts = await encode(device, weight, made)
      for (const tensor of made) if (!parts?.some((part) => part.tensor === tensor)) tensor.dispose()
      return parts ?? (await dense.encode(device, weight))
    } catch (error) {
      for (const tensor of made) tensor.dispose()
      throw error
    }
  },
}

/** The four parts of a matrix; undefined where they would take no less than the matrix. All that is made goes into `made`, too. */
async function encode(
  device: Device,
  weight: PrunedWeight,
  made: Tensor[],
): Promise<EncodedTensor[] | undefined> {
  const { matrix, shape } = weight
  const { bitmask, counts } = device.within(made, () => device.markValues(matrix))
  const lengths = await device.read(counts)
  const starts = new BigInt64Array(lengths.length)
  let count = 0
  for (const [row, length] of lengths.entries()) {
    starts[row] = BigInt(count)
    count += length
  }
  const layouts = packedLayouts(weight, count)
  const bytes = Object.values(layouts).reduce((sum, part) => sum + tensorBytes(part), 0)
  if (bytes >= tensorBytes(weight)) return undefined
  const bytesOf = (array: BigInt64Array) => new Uint8Array(array.buffer)
  return device.within(made, () => {
    const rowOffsets = device.upload(bytesOf(starts), [starts.length, 8])
    const sizes = BigInt64Array.from(shape, BigInt)
    return [
      { ...layouts.shape, tensor: device.upload(bytesOf(sizes), [2, 8]) },
      { ...layouts.compressed, tensor: device.packValues(matrix, bitmask, rowOffsets, count) },
      { ...layouts.bitmask, tensor: bitmask },
      { ...layouts.rowOffsets, tensor: rowOffsets },
    ]
  })
}
