import type { Encoding } from './encoding.js'

/** The encoding that stores every value of the matrix, its zeros included, under the weight's own name. */
export const dense: Encoding = {
  layout: ({ name, dtype, shape, fused }) => [{ name, dtype, shape, ...(fused && { fused }) }],
  encode: (_device, { name, dtype, shape, matrix }) =>
    Promise.resolve([{ name, dtype, shape, tensor: matrix.rowRange(0, matrix.rows) }]),
}
