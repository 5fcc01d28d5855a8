import { SparseGptError } from '../errors.js'
import type { Device, Tensor } from '../native/device.js'

/** What a method needs to know of a layer's inputs: a sum over the calibration tokens. */
export interface Statistic {
  /** Whether the sum is a symmetric matrix, of which the upper triangle is made. */
  symmetric: boolean
  /** The shape of the sum, float32, for inputs of `columns` features. */
  shape(columns: number): number[]
  /** Adds scale · what the rows of `input`, [tokens, columns], amount to. */
  add(device: Device, sum: Tensor, input: Tensor, scale: number): void
  /** The sum from a Gram matrix Σ x xᵀ, float32 [columns, columns], whose memory it may share. */
  ofGram(device: Device, gram: Tensor): Tensor
  /** The sum, an array of its own, from Σ x xᵀ, float32 [columns, columns], for callers who have that. Throws NOT_POSITIVE_DEFINITE. */
  fromHessian(hessian: Float32Array, columns: number): Float32Array
}

/** The Gram matrix Σ x xᵀ, [columns, columns], of which the upper triangle is made. */
export const gramMatrix: Statistic = {
  symmetric: true,
  shape: (columns) => [columns, columns],
  add: (device, sum, input, scale) => device.accumulateGram(sum, input, scale),
  ofGram: (_, gram) => gram,
  fromHessian: (hessian) => new Float32Array(hessian),
}

/** The sums of squares Σ x², [columns]. */
export const squareSums: Statistic = {
  symmetric: false,
  shape: (columns) => [columns],
  add: (device, sum, input, scale) => device.accumulateSquares(sum, input, scale),
  ofGram: (device, gram) => {
    const columns = gram.width
    const entries = gram.reshape([1, columns * columns])
    const diagonal = device.takeColumns(entries, { groups: columns, first: 0, count: 1, stride: columns + 1 })
    return diagonal.reshape([columns])
  },
  fromHessian: (hessian, columns) => {
    const squares = Float32Array.from({ length: columns }, (_, j) => hessian[j * columns + j] ?? 0)
    const column = squares.findIndex((square) => square < 0)
    if (column < 0) return squares
    const message = `the Hessian's diagonal is ${squares[column] ?? 0} in column ${column}: it is not a Gram matrix of the layer's inputs`
    throw new SparseGptError('NOT_POSITIVE_DEFINITE', message)
  },
}
