import { abortable } from '../abort.js'
import type { Device, Work } from '../native/device.js'
import type { PruneProgress } from './report.js'

/** Tells how far a pruning run has come, by the work that the device has been handed. */
export class ProgressMeter {
  /** The number of the block that is being pruned, from 0. */
  block = 0
  /** The number of the schedule's step, from 0, and of how many. */
  scheduleStep = 0
  scheduleSteps = 1
  private readonly before: number
  private last: PruneProgress | undefined

  constructor(
    private readonly device: Device,
    /** The number of blocks to go through. */
    readonly blocks: number,
    /** The work of the whole run, as a planning device counts it; without it the share that is done is that of the blocks. */
    private readonly total: Work | undefined,
    private readonly onProgress: ((progress: PruneProgress) => void) | undefined,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.before = cost(device.work)
  }

  /** Reports; throws ABORTED when the signal has fired. */
  step(phase: PruneProgress['phase'], details: Pick<PruneProgress, 'layer' | 'distillation'> = {}): void {
    const { block, blocks, scheduleStep, scheduleSteps, total } = this
    const done = cost(this.device.work) - this.before
    const fraction = total
      ? Math.min(1, done / Math.max(1, cost(total)))
      : (scheduleStep + block / Math.max(1, blocks)) / scheduleSteps
    this.last = { phase, block, blocks, scheduleStep, scheduleSteps, fraction }
    this.onProgress?.({ ...this.last, ...details })
    abortable(this.signal)
  }

  /** Reports that all is done, where the last report was of less: the work behind it, such as writing, has no steps. */
  end(): void {
    if (this.last && this.last.fraction < 1) this.onProgress?.({ ...this.last, fraction: 1 })
  }
}

/** The time of some work up to a factor: a byte moved takes about as long as 20 floating-point operations. */
function cost({ flop, bytes }: Work): number {
  return Object.values(flop).reduce((a, b) => a + b, 0) + 20 * bytes
}
