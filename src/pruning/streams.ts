import { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine, Offload } from '../models/engine.js'

/** A batch of windows in both streams. */
export interface BatchPair {
  pruned: Batch
  dense: Batch | undefined
}

/**
 * The calibration text on its way through the model, once or twice: the pruned stream goes through the blocks as pruned so far,
 * the dense stream, where something asks for it, through the dense blocks. Hidden states stand before a block or behind it.
 */
export class Streams {
  /** The hidden states of the pruned stream. */
  readonly pruned: readonly Batch[]
  /** The hidden states of the dense stream, of the same windows as `pruned` in the same order; undefined where nothing asks for it. */
  readonly dense: readonly Batch[] | undefined
  /** Whether the streams differ; until then they share their memory. */
  private apart = false

  /** `batches`: the embedded windows, which the streams own from then on. */
  constructor(
    private readonly engine: Engine,
    batches: readonly Batch[],
    options: { dense: boolean; offload?: Offload | undefined },
  ) {
    this.pruned = batches
    this.dense = options.dense ? batches.map(sharing) : undefined
    this.offload = options.offload
  }

  private readonly offload: Offload | undefined

  /** The batches of both streams side by side. */
  get pairs(): BatchPair[] {
    return this.pruned.map((pruned, i) => ({ pruned, dense: this.dense?.[i] }))
  }

  /** Whether nothing distinguishes the dense stream from the pruned one yet. */
  get equal(): boolean {
    return this.dense !== undefined && !this.apart
  }

  /** Says that the pruned stream goes through a block that differs from the dense one. */
  diverge(): void {
    this.apart = true
  }

  /**
   * Passes a block that need not be pruned. `weights`: those of the pruned stream; `changed`: whether an earlier process has pruned
   * them, so that the dense stream needs those of the source. `step` is called after each batch.
   */
  async pass(
    index: number,
    weights: BlockWeights,
    { changed, step }: { changed: boolean; step: () => void },
  ): Promise<void> {
    const { engine, dense } = this
    if (dense && changed) {
      const source = await engine.weights.ofSource(
        () => new BlockWeights(engine.device, engine.weights, weights.spec),
      )
      try {
        await this.passOne(index, source, dense, step)
      } finally {
        source.dispose()
      }
      this.diverge()
    } else if (dense && this.apart) {
      await this.passOne(index, weights, dense, step)
    }
    await this.passOne(index, weights, this.pruned, step)
    if (!dense || this.apart) return
    dense.forEach((batch, i) => {
      batch.hidden.dispose()
      batch.hidden = sharing(this.pruned[i]!).hidden
    })
  }

  /** Passes the pruned stream only, through a block that has just been pruned. */
  passPruned(index: number, weights: BlockWeights, step: () => void): Promise<void> {
    return this.passOne(index, weights, this.pruned, step)
  }

  /** Passes the dense stream only, through a block before it is pruned. */
  async passDense(index: number, weights: BlockWeights, step: () => void): Promise<void> {
    if (this.dense) await this.passOne(index, weights, this.dense, step)
  }

  dispose(): void {
    for (const { hidden } of [...this.pruned, ...(this.dense ?? [])]) hidden.dispose()
  }

  private passOne(
    index: number,
    weights: BlockWeights,
    batches: readonly Batch[],
    step: () => void,
  ): Promise<void> {
    return this.engine.passBlock(index, weights, batches, { step, offload: this.offload })
  }
}

/** The same batch, with a handle of its own on the hidden states. */
export function sharing({ sequences, hidden }: Batch): Batch {
  return { sequences, hidden: hidden.share() }
}
