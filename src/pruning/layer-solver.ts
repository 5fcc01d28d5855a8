import type { Device, Tensor } from '../native/device.js'
import type { Selection, Solver } from './methods/method.js'

/** What the pruning of one matrix came to. */
export interface SolvedLayer {
  /** The mask, uint8 [rows, columns], 1 = pruned. */
  mask: Tensor
  /** The loss ½ tr(ΔW H ΔWᵀ); null where the method does not know it. */
  loss: number | null
  /** The number of zeros in the matrix. */
  zeros: number
  /** The time that the device took. */
  seconds: number
}

/** Prunes `weight`, float32 [rows, columns], in place, and waits for it. Made tensors go into the device's scope. */
export async function solveLayer(
  device: Device,
  solver: Solver,
  weight: Tensor,
  selection: Selection,
): Promise<SolvedLayer> {
  const watch = new Stopwatch(device)
  const { mask, loss } = solver.prune(weight, selection)
  watch.stop()
  const counted = device.countZeros(weight)
  const reads = [
    device.read(counted),
    loss ? device.read(loss) : Promise.resolve(undefined),
    watch.seconds(),
  ] as const
  const [[zeros = 0], losses, seconds] = await Promise.all(reads)
  return { mask, loss: losses?.[0] ?? null, zeros, seconds }
}

/** Measures the time of the device's own clock between two points of its queue. Made tensors go into the device's scope. */
export class Stopwatch {
  private readonly start: Tensor
  private end: Tensor | undefined

  constructor(private readonly device: Device) {
    this.start = device.timestamp()
  }

  stop(): void {
    this.end = this.device.timestamp()
  }

  /** The seconds from the making of the stopwatch to stop(); waits for the queue. */
  async seconds(): Promise<number> {
    const stamps = [this.start, this.end ?? this.start].map((stamp) => this.device.read(stamp))
    const [from, to] = await Promise.all(stamps)
    return (to?.[0] ?? 0) - (from?.[0] ?? 0)
  }
}
