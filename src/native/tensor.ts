import type { Addon, DType, TensorHandle } from './addon.js'
import { native } from './failure.js'

/**
 * A tensor in device memory or in a mapped file. It owns native memory: dispose of it (`dispose()`, `using`, or the scope it
 * was made in); a finalizer is the safety net. Operations already enqueued keep what they need.
 */
export class Tensor {
  constructor(
    readonly handle: TensorHandle,
    readonly dtype: DType,
    /** The sizes, row-major; a vector has one dimension, everything else two. */
    readonly shape: readonly number[],
    private readonly addon: Pick<Addon, 'view' | 'reshape' | 'release'>,
  ) {}

  /** Columns [first, first + count) of every row; the result shares the memory. */
  columns(first: number, count: number): Tensor {
    const handle = this.addon.view(this.handle, 0, this.rows, first, count)
    return new Tensor(handle, this.dtype, [this.rows, count], this.addon)
  }

  /** Rows [first, first + count); the result shares the memory. */
  rowRange(first: number, count: number): Tensor {
    const handle = this.addon.view(this.handle, first, count, 0, this.width)
    return new Tensor(handle, this.dtype, [count, this.width], this.addon)
  }

  /** The tensor again, with a handle of its own: each of the two is disposed of. */
  share(): Tensor {
    const handle = this.addon.view(this.handle, 0, this.rows, 0, this.width)
    return new Tensor(handle, this.dtype, this.shape, this.addon)
  }

  /** The elements in another shape; the result shares the memory. The rows must lie one after another (not so of `columns()`). */
  reshape(shape: readonly number[]): Tensor {
    const [rows, columns] = matrixShape(shape)
    const handle = native(() => this.addon.reshape(this.handle, rows, columns))
    return new Tensor(handle, this.dtype, shape, this.addon)
  }

  get rows(): number {
    return matrixShape(this.shape)[0]
  }

  get width(): number {
    return matrixShape(this.shape)[1]
  }

  /** The size of the elements, in bytes. */
  get bytes(): number {
    return this.rows * this.width * elementBytes[this.dtype]
  }

  dispose(): void {
    this.addon.release(this.handle)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** The size of an element, in bytes. */
export const elementBytes: Readonly<Record<DType, number>> = {
  float64: 8,
  float32: 4,
  int32: 4,
  bfloat16: 2,
  float16: 2,
  uint8: 1,
}

/** The shape as the addon has it: rows and columns. */
export function matrixShape(shape: readonly number[]): [rows: number, columns: number] {
  return [shape.slice(0, -1).reduce((a, b) => a * b, 1), shape[shape.length - 1] ?? 1]
}
