import { startsOf } from '../files/packed.js'
import type { CodedTensors } from '../models/weights.js'
import type { Device, DType, Tensor } from '../native/device.js'
import { elementBytes } from '../native/tensor.js'
import type { StripForm, StripSource } from '../native/operations.js'

/** The number of rows that strips are multiplied with at most. */
export const fewRows = 8

/** A mask takes a bit for every element of 16: from this share of zeros on it is smaller than they. */
const leastZeros = 0.1

/**
 * A matrix [rows, columns] in the form that is read fastest when it is multiplied with a few rows. It owns native memory until disposed
 * of.
 */
export class Strips {
  private constructor(
    private readonly device: Device,
    private readonly rows: number,
    private readonly form: StripForm,
    private readonly offsets: Tensor,
    private readonly stream: Tensor,
  ) {}

  /**
   * Makes strips of a matrix in the type of the activations. `stored`: the type that all its elements fit in. Resolves to undefined where
   * that would not be smaller than the matrix by a tenth.
   */
  static async ofMatrix(device: Device, matrix: Tensor, stored: DType): Promise<Strips | undefined> {
    if (matrix.dtype !== 'bfloat16' && stored !== 'bfloat16') return undefined
    const made: Tensor[] = []
    try {
      const [zeros = 0] = await device.read(device.within(made, () => device.countZeros(matrix)))
      const share = zeros / (matrix.rows * matrix.width)
      const masked = share >= leastZeros
      const bytes = matrix.rows * matrix.width * elementBytes.bfloat16 * (masked ? 1 - share + 1 / 16 : 1)
      if (bytes > 0.9 * matrix.bytes) return undefined
      const x = device.within(made, () =>
        matrix.dtype === 'bfloat16' ? matrix : device.cast(matrix, 'bfloat16'),
      )
      return await Strips.of(device, { x }, { bits: 16, masked, group: matrix.width, halfScales: false })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /**
   * Makes strips of codes, and disposes of what it gets. Resolves to undefined where their groups are no whole multiples of 32 columns.
   */
  static async ofCodes(
    device: Device,
    { codes, scale, zeroPoints, bits, groupSize }: CodedTensors,
  ): Promise<Strips | undefined> {
    const made = [codes, scale, zeroPoints]
    try {
      if (groupSize % 32 !== 0 && groupSize !== codes.width) return undefined
      const { counts } = device.within(made, () => device.markCodes(codes, zeroPoints, bits))
      let kept = 0
      for (const count of await device.read(counts)) kept += count
      const masked = 1 - kept / (codes.rows * codes.width) > 1 / bits
      const form = { masked, group: groupSize, halfScales: scale.dtype === 'bfloat16' }
      const source = { x: codes, grid: { zeros: zeroPoints, scales: scale } }
      return await Strips.of(device, source, { ...form, bits: bits > 4 ? 8 : 4 })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /** Makes strips of bfloat16 elements, or of codes. */
  static async of(device: Device, source: StripSource, form: StripForm): Promise<Strips> {
    const measured: Tensor[] = []
    try {
      const sizes = await device.read(device.within(measured, () => device.measureStrips(source, form)))
      const { starts, end } = startsOf(sizes)
      return device.within([], () => {
        const offsets = device.upload(new Uint8Array(starts.buffer), [sizes.length, 8])
        const stream = device.packStrips(source, offsets, end + 64, form)
        return new Strips(device, source.x.rows, form, offsets, stream)
      })
    } finally {
      for (const tensor of measured) tensor.dispose()
    }
  }

  /** What a product reads, in bytes. */
  get bytes(): number {
    return this.stream.bytes
  }

  /** x Wᵀ + bias, [rows of x, rows], of the type of x or `dtype`; x has at most `fewRows` rows. */
  multiply(x: Tensor, bias?: Tensor, dtype: DType = x.dtype): Tensor {
    const { stream, offsets, rows, form } = this
    return this.device.multiplyStrips(x, { stream, offsets, rows, form }, bias, dtype)
  }

  dispose(): void {
    for (const tensor of [this.offsets, this.stream]) tensor.dispose()
  }
}
