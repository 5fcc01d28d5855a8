import type { Device, Tensor } from '../../native/device.js'
import type { WeightFormat } from '../checkpoint.js'
import type { Grid } from '../coded.js'
import type { StoredTensor, TensorLayout } from '../safetensors.js'

/**
 * The form in which pruned weights are written. Between the pruning and the file every pruned matrix passes `encode`,
 * which may give it other names, dtypes and sizes.
 */
export interface Encoding {
  /**
   * Whether the encoder looks at the solver's mask, which then stays in memory until the weight is written. Default: false. One that does
   * not is applied to every linear layer of the blocks, pruned or not.
   */
  usesMask?: boolean

  /** Whether the encoder looks at the codes of a weight that was rounded to a grid. Default: false. */
  usesCodes?: boolean

  /** How the weight files are called. Default: those of dense weights. */
  format?: WeightFormat

  /**
   * The tensors that take the place of a weight, as far as they are known before it is pruned: space on the disk is
   * checked, and room for the file's header is kept, by what this returns. `grid`: what the weight will be rounded to. Throws
   * SparseGptError for a weight that the form has no place for.
   */
  layout(weight: TensorLayout, grid?: Grid): PartLayout[]

  /**
   * The tensors to write in the place of a weight: those of `layout`, in its order, of which those that vary may be missing, or, where
   * all vary, the weight as it is. The caller disposes of them, which must leave the weight as it is. Throws SparseGptError.
   */
  encode(device: Device, weight: PrunedWeight): Promise<EncodedTensor[]>

  /** Puts matrices in the place of the parts that `encode` has made of them, all of one file. Default: as in a folder of `format`. */
  join?: (file: string, tensors: readonly StoredTensor[], grid: Grid | undefined) => Promise<StoredTensor[]>

  /**
   * What config.json is to say of the weights under the name quantization_config; undefined for nothing. `grids`: those of the weights that
   * were rounded; `tensors`: all that the weight files have.
   */
  quantization?(grids: readonly Grid[], tensors: readonly TensorLayout[]): Record<string, unknown> | undefined
}

/** One of the tensors that take the place of a weight, before the weight is pruned. */
export interface PartLayout extends TensorLayout {
  /** Whether the values of the weight decide the shape; `shape` is then the largest that is possible. Default: false. */
  varies?: boolean
}

/** A matrix on its way from the pruning to the encoding; `shape` and `dtype` are those of the checkpoint. */
export interface PrunedWeight extends TensorLayout {
  /** The matrix in its stored form: on the device, contiguous, of the element type that `dtype` names. */
  matrix: Tensor
  /** The solver's mask, uint8 in the layout of `matrix`, 1 = pruned; there if `usesMask` is true. */
  mask: Tensor | undefined
  /** Its codes; there if `usesCodes` is true and the weight was rounded. */
  codes?: Codes | undefined
}

/** The codes of a matrix, whose elements are scale · (code - zero point), rounded to the dtype of the matrix. */
export interface Codes {
  grid: Grid
  /** The codes, uint8 [out, in]. */
  codes: Tensor
  /** The scales, [out, groups], in the type of the matrix. */
  scale: Tensor
  /** The zero points, uint8 [out, groups]. */
  zeroPoints: Tensor
}

/** A tensor to be written; `shape` and `dtype` are those that the file's header will name. */
export interface EncodedTensor extends TensorLayout {
  /** The values: on the device, contiguous, with as many bytes as `shape` and `dtype` say. */
  tensor: Tensor
}
