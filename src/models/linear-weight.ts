import type { Device, DType, Tensor } from '../native/device.js'
import { storedShape, type LinearSpec } from './specs.js'
import type { Weights } from './weights.js'

type StoredType = 'float32' | 'bfloat16' | 'float16'

/**
 * The matrix of a linear layer in its three forms: stored (the checkpoint's element type and layout), for the forward pass
 * ([out, in] in the compute type), and to be solved (float32 [out, in]). Where two of them are the same they share memory.
 */
export class LinearWeight {
  private current: Tensor
  /** The element type of the stored form. */
  readonly storedType: StoredType
  /** Whether `current` is a conversion of a matrix that is trained, to be overwritten. */
  private following = false

  private constructor(
    private readonly device: Device,
    private readonly weights: Weights,
    /** The checkpoint name of the matrix, '.weight' included. */
    readonly name: string,
    readonly spec: LinearSpec,
    stored: Tensor,
  ) {
    this.storedType = stored.dtype as StoredType
    this.current = this.forwardForm(stored)
    // A matrix of which a converted copy was made need not stay in memory beside it.
    if (!this.shares) weights.drop(stored)
  }

  /** Loads the matrix of a linear layer; the caller disposes of it. Throws INVALID_CHECKPOINT, UNSUPPORTED_MODEL. */
  static load(device: Device, weights: Weights, name: string, spec: LinearSpec): LinearWeight {
    return new LinearWeight(device, weights, name, spec, weights.stored(name, storedShape(spec)))
  }

  /** The matrix that activations are multiplied with, [out, in] in the compute type; the weight owns it. */
  get matrix(): Tensor {
    return this.current
  }

  /** The matrix in float32 [out, in], to be changed in place by a solver, which hands it to settle() and then disposes of it. */
  solving(): Tensor {
    const { device, current, weights, spec } = this
    // The forward pass's matrix may have lost bits of what is stored.
    if (weights.dtype === 'float32' || weights.dtype === this.storedType) {
      const own = current.dtype === 'float32' && !this.shares
      return own ? current.share() : device.cast(current, 'float32')
    }
    const stored = weights.stored(this.name, storedShape(spec))
    try {
      return this.convert(stored, 'float32')
    } finally {
      weights.drop(stored)
    }
  }

  /**
   * Lets the forward pass multiply with what solving() has become so far, float32 [out, in], in the compute type. To be called again
   * after every change of it, and settle() at the end.
   */
  follow(solved: Tensor): void {
    const { device, current: before, following } = this
    if (solved.dtype !== this.weights.dtype) {
      this.current = device.within([], () =>
        device.cast(solved, this.weights.dtype, following ? before.share() : undefined),
      )
    } else {
      this.current = solved.share()
    }
    this.following = true
    before.dispose()
  }

  /**
   * Takes over what became of solving(), and returns it in its stored form. From then on the forward pass sees what is stored,
   * rounded to its type.
   */
  settle(solved: Tensor): Tensor {
    const { device, spec, storedType: dtype } = this
    const before = this.current
    this.following = false
    if (this.weights.dtype !== 'float32') {
      const stored = this.convertBack(solved)
      solved.dispose() // its memory serves the forward pass's matrix
      this.current = device.within([], () => this.forwardForm(stored))
      before.dispose()
      return stored
    }
    const stored = dtype === 'float32' && spec.layout !== 'in-out' ? solved.share() : this.convertBack(solved)
    if (stored.dtype !== 'float32') this.convert(stored, 'float32', solved)
    this.current = solved.share()
    solved.dispose()
    before.dispose()
    return stored
  }

  /** A mask, uint8 [out, in], in the layout of the stored form. */
  storedMask(mask: Tensor): Tensor {
    return this.spec.layout === 'in-out' ? this.device.transpose(mask, 'uint8') : mask
  }

  /** A mask, uint8 in the layout of the stored form, as [out, in]. */
  solvingMask(stored: Tensor): Tensor {
    return this.spec.layout === 'in-out' ? this.device.transpose(stored, 'uint8') : stored
  }

  /** Lets go of the matrix, which is then not asked for again. */
  release(): void {
    this.device.releasePages(this.current)
    this.current.dispose()
  }

  dispose(): void {
    this.current.dispose()
  }

  /** Whether the forward pass's matrix shares the memory of the stored form. */
  private get shares(): boolean {
    const { device, weights, spec, storedType } = this
    return device.traits.inHostMemory && storedType === weights.dtype && spec.layout !== 'in-out'
  }

  private forwardForm(stored: Tensor): Tensor {
    return this.shares ? stored.share() : this.convert(stored, this.weights.dtype)
  }

  private convert(stored: Tensor, dtype: DType, out?: Tensor): Tensor {
    const { device, spec } = this
    return spec.layout === 'in-out' ? device.transpose(stored, dtype, out) : device.cast(stored, dtype, out)
  }

  private convertBack(matrix: Tensor): Tensor {
    const { device, spec, storedType: dtype } = this
    return spec.layout === 'in-out' ? device.transpose(matrix, dtype) : device.cast(matrix, dtype)
  }
}
