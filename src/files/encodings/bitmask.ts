import type { Device, Tensor } from '../../native/device.js'
import { packed } from '../checkpoint.js'
import { codeBytes, codeLayouts } from '../coded.js'
import { packedLayouts, startsOf } from '../packed.js'
import { tensorBytes, type TensorLayout } from '../safetensors.js'
import { dense } from './dense.js'
import type { Codes, EncodedTensor, Encoding, PrunedWeight } from './encoding.js'

/**
 * The encoding that stores the values that are not zero and a bit for every element (sparse-bitmask of compressed-tensors 0.9 to
 * 0.14). It keeps every bit: a negative zero counts as a value. A matrix that would not become smaller stays as it is. Of a matrix on
 * grids the codes are stored in the place of the values, with a bit for every element where that is smaller.
 */
export const bitmask: Encoding = {
  format: packed,
  usesCodes: true,
  layout: (weight, grid) => {
    const [rows = 0, columns = 0] = weight.shape
    const values = Object.values(packedLayouts(weight, rows * columns))
    if (!grid) return values.map(varying)
    const [, inputs] = grid.transposed ? [columns, rows] : [rows, columns]
    const bytes = ((rows * columns) / inputs) * codeBytes(inputs, grid.bits)
    const codes = Object.values(codeLayouts(weight, grid, bytes))
    // Both have a bitmask and row offsets.
    const names = new Set(codes.map(({ name }) => name))
    return [...codes, ...values.filter(({ name }) => !names.has(name))].map(varying)
  },
  encode: async (device, weight) => {
    const made: Tensor[] = []
    try {
      const { codes } = weight
      const parts =
        (codes && (await encodeCodes(device, weight, codes, made))) ??
        (await encodeValues(device, weight, made))
      for (const tensor of made) if (!parts?.some((part) => part.tensor === tensor)) tensor.dispose()
      return parts ?? (await dense.encode(device, weight))
    } catch (error) {
      for (const tensor of made) tensor.dispose()
      throw error
    }
  },
}

const varying = (part: TensorLayout) => ({ ...part, varies: true })

const bytesOf = (array: BigInt64Array) => new Uint8Array(array.buffer)

const areSmaller = (parts: readonly TensorLayout[], weight: TensorLayout) =>
  parts.reduce((sum, part) => sum + tensorBytes(part), 0) < tensorBytes(weight)

/** The four parts of a matrix; undefined where they would take no less than the matrix. All that is made goes into `made`, too. */
async function encodeValues(
  device: Device,
  weight: PrunedWeight,
  made: Tensor[],
): Promise<EncodedTensor[] | undefined> {
  const { matrix, shape } = weight
  const { bitmask, counts } = device.within(made, () => device.markValues(matrix))
  const lengths = await device.read(counts)
  const { starts, end: count } = startsOf(lengths)
  const layouts = packedLayouts(weight, count)
  if (!areSmaller(Object.values(layouts), weight)) return undefined
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

/**
 * The parts of a matrix of codes, with a bitmask and row offsets where that takes less; undefined where they would take no less than the
 * matrix. All that is made goes into `made`, too.
 */
async function encodeCodes(
  device: Device,
  weight: PrunedWeight,
  { grid, codes, scale, zeroPoints }: Codes,
  made: Tensor[],
): Promise<EncodedTensor[] | undefined> {
  const { bits, groupSize, symmetric, transposed } = grid
  const { rows, width } = codes
  const zeros = symmetric ? undefined : zeroPoints
  const { bitmask, counts } = device.within(made, () => device.markCodes(codes, zeros, bits))
  const lengths = Array.from(await device.read(counts), (count) => codeBytes(count, bits))
  const { starts, end } = startsOf(lengths)
  const all = rows * codeBytes(width, bits)
  const marks = end + bitmask.bytes + starts.byteLength < all
  const layouts = codeLayouts(weight, grid, marks ? end : all)
  const { shape, rowOffsets, scale: scales, zeroPoint, bitmask: marked, codes: stream } = layouts
  const parts = [shape, scales, stream, ...(zeros ? [zeroPoint] : []), ...(marks ? [rowOffsets, marked] : [])]
  if (!areSmaller(parts, weight)) return undefined
  return device.within(made, () => {
    const sizes = BigInt64Array.from([rows, width, bits, groupSize, ...(transposed ? [1] : [])], BigInt)
    const offsets = device.upload(bytesOf(starts), [rows, 8])
    const packed = marks
      ? device.packCodes(codes, bits, [end], { bitmask, offsets })
      : device.packCodes(codes, bits, [rows, all / rows])
    return [
      { ...shape, tensor: device.upload(bytesOf(sizes), [sizes.length, 8]) },
      ...(marks ? [{ ...rowOffsets, tensor: offsets }] : []),
      { ...scales, tensor: scale.share() },
      ...(zeros ? [{ ...zeroPoint, tensor: zeros.share() }] : []),
      ...(marks ? [{ ...marked, tensor: bitmask }] : []),
      { ...stream, tensor: packed },
    ]
  })
}
