import type { Device, Tensor } from '../native/device.js'

/** What a method needs to know of a layer's inputs: a sum over the calibration tokens. */
export interface Statistic {
  /** The shape of the sum, float32, for inputs of `columns` features. */
  shape(columns: number): number[]
  /** Adds scale · what the rows of `input`, [tokens, columns], amount to. */
  add(device: Device, sum: Tensor, input: Tensor, scale: number): void
  /** The sum from Σ x xᵀ, float32 [columns, columns], for callers who have that. */
  fromHessian(hessian: Float32Array, columns: number): Float32Array
}

/** The Gram matrix Σ x xᵀ, [columns, columns], of which the upper triangle is made. */
export const gramMatrix: Statistic = {
  shape: (columns) => [columns, columns],
  add: (device, sum, input, scale) => device.accumulateGram(sum, input, scale),
  fromHessian: (hessian) => hessian,
}

/** The sums of squares Σ x², [columns]. */
export const squareSums: Statistic = {
  shape: (columns) => [columns],
  add: (device, sum, input, scale) => device.accumulateSquares(sum, input, scale),
  fromHessian: (hessian, columns) =>
    Float32Array.from({ length: columns }, (_, j) => hessian[j * columns + j] ?? 0),
}
