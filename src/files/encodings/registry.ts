import { bitmask } from './bitmask.js'
import { compressedTensors } from './compressed-tensors.js'
import { dense } from './dense.js'
import type { Encoding } from './encoding.js'

/** The encodings that a pruned model can be written in, by name. They are such that loadModel reads them. */
export const encodings = {
  dense,
  bitmask,
  'compressed-tensors': compressedTensors,
} satisfies Record<string, Encoding>

/** The name of an output encoding. */
export type EncodingName = keyof typeof encodings
