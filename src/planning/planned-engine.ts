import type { Architecture } from '../models/architecture.js'
import type { BlockWeights } from '../models/block-weights.js'
import { Engine } from '../models/engine.js'
import { emptyCheckpoint } from '../files/checkpoint.js'
import type { Weights } from '../models/weights.js'
import type { Device } from '../native/device.js'
import type { ShapeExecutor } from './shape-executor.js'

/** What is counted of some work, by kind. */
type Counts = Record<string, number>

/**
 * An engine on a device that knows shapes only. A block takes what another of the same spec and role takes, if the block behind it is
 * like the one behind that, too: of such blocks only the first runs, and its work is counted for the others.
 */
export class PlannedEngine extends Engine {
  constructor(
    device: Device,
    architecture: Architecture,
    weights: Weights,
    private readonly executor: ShapeExecutor,
    /** What is done with a block; two of the same role and spec take the same. */
    private readonly role: (index: number) => string,
  ) {
    super(device, architecture, weights, emptyCheckpoint(weights.config), '')
  }

  override *blocks(
    count = this.architecture.blockCount,
    { growing = false }: { growing?: boolean } = {},
  ): Generator<[index: number, weights: BlockWeights]> {
    const kinds = Array.from({ length: count }, (_, index) => {
      const { prefix, ...spec } = this.architecture.block(index)
      return JSON.stringify([spec, growing ? index : this.role(index)])
    })
    const measured = new Map<string, Counts>()
    for (const [index, kind] of kinds.entries()) {
      const key = `${kind} ${kinds[index + 1] ?? ''}`
      const known = measured.get(key)
      if (known) {
        this.count(known, 1)
        continue
      }
      const before = this.counts()
      const block = this.loadBlock(index)
      const loaded = this.counts()
      // Its memory counts here, its work when its turn comes.
      const ahead = this.device.traits.loadsAhead && index + 1 < count ? this.loadBlock(index + 1) : undefined
      this.count(difference(this.counts(), loaded), -1)
      try {
        yield [index, block]
      } finally {
        block.dispose()
        ahead?.dispose()
      }
      measured.set(key, difference(this.counts(), before))
    }
  }

  private counts(): Counts {
    const { flop, bytes } = this.device.work
    const { bytesRead, bytesOffloaded, bytesReceived } = this.executor
    return { ...flop, bytes, bytesRead, bytesOffloaded, bytesReceived }
  }

  private count(
    { bytes = 0, bytesRead = 0, bytesOffloaded = 0, bytesReceived = 0, ...flop }: Counts,
    times: number,
  ): void {
    const { work } = this.device
    work.bytes += times * bytes
    for (const kind of Object.keys(work.flop) as (keyof typeof work.flop)[])
      work.flop[kind] += times * (flop[kind] ?? 0)
    this.executor.bytesRead += times * bytesRead
    this.executor.bytesOffloaded += times * bytesOffloaded
    this.executor.bytesReceived += times * bytesReceived
  }
}

const difference = (after: Counts, before: Counts): Counts =>
  Object.fromEntries(Object.entries(after).map(([kind, value]) => [kind, value - (before[kind] ?? 0)]))
