import { Communicator } from '../native/communicator.js'
import type { Device, Tensor } from '../native/device.js'
import { elementBytes } from '../native/tensor.js'
import type { ShapeExecutor } from './shape-executor.js'

/** The first of several ranks, on a device that knows shapes only: what it would receive is counted. */
export class PlannedCommunicator extends Communicator {
  readonly rank = 0

  constructor(
    readonly size: number,
    private readonly executor: ShapeExecutor,
  ) {
    super()
  }

  get bytesReceived(): number {
    return this.executor.bytesReceived
  }

  /** Each rank gets a part of the tensor from all others to sum it, and then the sums of the others' parts. */
  allReduce(_: Device, { rows, width, dtype }: Tensor, { upper = false } = {}): Promise<void> {
    const triangle = Math.min(rows, width)
    const elements = upper
      ? rows * width - (triangle * (triangle - 1)) / 2 - (rows - triangle) * width
      : rows * width
    const part = Math.ceil(elements / this.size) * elementBytes[dtype]
    this.executor.bytesReceived += 2 * (this.size - 1) * part
    return Promise.resolve()
  }

  broadcast(_: Device, { bytes }: Tensor, root: number): Promise<void> {
    if (root !== this.rank) this.executor.bytesReceived += bytes
    return Promise.resolve()
  }

  override share<T>(_: Device, value: T): Promise<T> {
    return Promise.resolve(value)
  }

  override gather<T>(_: Device, value: T): Promise<T[]> {
    return Promise.resolve(Array<T>(this.size).fill(value))
  }

  abort(): void {
    // There is nobody to tell.
  }
}
