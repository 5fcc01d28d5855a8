import type { Device, Tensor } from '../../native/device.js'
import type { WeightFormat } from '../checkpoint.js'
import type { TensorLayout } from '../safetensors.js'

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

  /** How the weight files are called. Default: those of dense weights. */
  format?: WeightFormat

  /**
   * The tensors that take the place of a weight, as far as they are known before it is pruned: space on the disk is
   * checked, and room for the file's header is kept, by what this returns.
   */
  layout(weight: TensorLayout): PartLayout[]

  /**
   * The tensors to write in the place of a weight: those of `layout`, in its order, or, where all of those vary, the weight as it is.
   * The caller disposes of them, which must leave the weight as it is. Throws SparseGptError.
   */
  encode(device: Device, weight: PrunedWeight): Promise<EncodedTensor[]>
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
}

/** A tensor to be written; `shape` and `dtype` are those that the file's header will name. */
export interface EncodedTensor extends TensorLayout {
  /** The values: on the device, contiguous, with as many bytes as `shape` and `dtype` say. */
  tensor: Tensor
}
