import type { Grid } from '../files/coded.js'
import type { Codes } from '../files/encodings/encoding.js'
import type { Device, Tensor } from '../native/device.js'
import type { Grids } from './methods/method.js'

/** The codes of a matrix, apart from what was asked of its grids. */
export type MatrixCodes = Omit<Codes, 'grid'>

/** The codes of a matrix [out, in] that was rounded to `grids`. Made tensors go into the device's scope. */
export function codesOf(device: Device, matrix: Tensor, { bits, steps, zeros }: Grids): MatrixCodes {
  return { ...device.quantizeCodes(matrix, { steps, zeros }, bits), scale: steps }
}

/**
 * The nearest codes of a matrix [out, in] in its stored form, on a grid over each group that spans its elements. Made tensors go into the
 * device's scope.
 */
export function nearestCodes(
  device: Device,
  matrix: Tensor,
  { bits, groupSize, symmetric }: Grid,
): MatrixCodes {
  const stepType = matrix.dtype as 'float32' | 'bfloat16' | 'float16'
  const grids = device.findGrids(matrix, { bits, groupSize, symmetric, clip: false, stepType })
  return codesOf(device, matrix, { bits, ...grids })
}
