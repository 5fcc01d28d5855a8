import { SparseGptError } from '../../errors.js'
import type { Tensor } from '../../native/device.js'
import { joinPackQuantized } from '../packed.js'
import { packDown, quantizationConfig, quantizedLayouts } from '../pack-quantized.js'
import { dense } from './dense.js'
import type { Encoding } from './encoding.js'

/** The sizes of groups that all who read the format know; else a group is a row. */
const groupSizes: readonly number[] = [32, 64, 128]

/**
 * The encoding that stores the codes of all elements, zeros included, as the format pack-quantized of compressed-tensors, which
 * transformers and vLLM read. A weight that is on no grid stays as it is.
 */
export const compressedTensors: Encoding = {
  usesCodes: true,
  layout: (weight, grid) => {
    if (!grid) return dense.layout(weight)
    if (grid.transposed) {
      const message = `prune: option encoding: compressed-tensors has no form for ${weight.name}, which is stored as [in, out]: give encoding "bitmask"`
      throw new SparseGptError('INVALID_OPTION', message)
    }
    const { zeroPoint, ...layouts } = quantizedLayouts(weight, grid)
    const parts = [...Object.values(layouts), ...(grid.symmetric ? [] : [zeroPoint])]
    // Nothing is known of the inputs of an expert that no token reaches, so that it is not rounded.
    return [...parts, weight].map(({ name, dtype, shape }) => ({ name, dtype, shape, varies: true }))
  },
  encode: async (device, weight) => {
    const { codes: coded } = weight
    if (!coded) return dense.encode(device, weight)
    const { grid, codes, scale, zeroPoints } = coded
    const { bits, symmetric } = grid
    const layouts = quantizedLayouts(weight, grid)
    const [, words = 0] = layouts.codes.shape
    const zeros = symmetric
      ? undefined
      : packDown((await device.read(zeroPoints)) as Uint8Array, zeroPoints.width, bits)
    const made: Tensor[] = []
    return device.within(made, () => [
      { ...layouts.codes, tensor: device.packCodes(codes, bits, [codes.rows, 4 * words]) },
      { ...layouts.scale, tensor: scale.share() },
      {
        ...layouts.shape,
        tensor: device.upload(new Uint8Array(BigInt64Array.from(weight.shape, BigInt).buffer), [2, 8]),
      },
      ...(zeros ? [{ ...layouts.zeroPoint, tensor: device.upload(zeros, layouts.zeroPoint.shape) }] : []),
    ])
  },
  join: (file, tensors, grid) =>
    grid ? joinPackQuantized(file, tensors, grid.bits) : Promise.resolve([...tensors]),
  quantization: (grids, tensors) => {
    const [grid] = grids
    if (!grid) return undefined
    const { groupSize } = grid
    const grouped = groupSizes.includes(groupSize) && grids.every((other) => other.groupSize === groupSize)
    return quantizationConfig({ ...grid, groupSize: grouped ? groupSize : undefined }, tensors)
  },
}
