import type { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine, Offload } from '../models/engine.js'

/** A batch of windows in both streams. */
export interface BatchPair {
  pruned: Batch
  dense: Batch | undefined
  /** The part of the windows that it is of, from 0. */
  part: number
}

/**
 * The calibration text on its way through the model, once or twice: the pruned stream goes through the blocks as pruned so far,
 * the dense stream, where something asks for it, through the dense model's blocks. Hidden states stand before a block or behind it.
 */
export class Streams {
  /** The hidden states of the pruned stream. */
  readonly pruned: readonly Batch[]
  /** The hidden states of the dense stream, of the same windows as `pruned` in the same order; undefined where nothing asks for it. */
  readonly dense: readonly Batch[] | undefined
  /** Whether the streams differ; until then they share their memory. */
  private apart: boolean
  private readonly offload: Offload | undefined

  /**
   * Embeds the windows of `groups`, a batch each. `dense`: the dense model where something asks for the dense stream, on the device of
   * `engine`: that itself, whose blocks are dense until they are pruned, or another. `parts`: the part of the windows
   * that each group is of; default: all are of one.
   */
  constructor(
    private readonly engine: Engine,
    groups: readonly (readonly Int32Array[])[],
    private readonly o: {
      dense: Engine | undefined
      offload?: Offload | undefined
      parts?: readonly number[]
    },
  ) {
    const { dense, offload } = o
    this.offload = offload
    this.pruned = engine.embed(groups, offload)
    this.apart = dense !== engine
    this.dense = this.apart ? dense?.embed(groups, offload) : this.pruned.map(sharing)
  }

  /** The batches of both streams side by side. */
  get pairs(): BatchPair[] {
    return this.pruned.map((pruned, i) => ({ pruned, dense: this.dense?.[i], part: this.o.parts?.[i] ?? 0 }))
  }

  /** Says that the pruned stream goes through a block that differs from the dense one. */
  diverge(): void {
    this.apart = true
  }

  /**
   * The block as the dense stream sees it, which the caller disposes of unless it is `weights`. `weights`: that of the pruned stream;
   * `changed`: whether an earlier process has pruned them.
   */
  async denseBlock(index: number, weights: BlockWeights, changed: boolean): Promise<BlockWeights> {
    const { engine } = this
    const { dense } = this.o
    if (dense && dense !== engine) return dense.loadBlock(index)
    if (!dense || !changed) return weights
    return engine.weights.ofSource(() => engine.loadBlock(index))
  }

  /** A block of the dense model that has not been pruned yet; the caller disposes of it. */
  loadDense(index: number): BlockWeights {
    return (this.o.dense ?? this.engine).loadBlock(index)
  }

  /** Passes a block that need not be pruned. `denseWeights`: those of the dense stream. `step` is called after each batch. */
  async pass(
    index: number,
    weights: BlockWeights,
    denseWeights: BlockWeights,
    step: () => void,
  ): Promise<void> {
    const { dense } = this
    if (weights !== denseWeights) this.diverge()
    if (this.apart) await this.passDense(index, denseWeights, step)
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

  /** Passes the dense stream only, if there is one, through a dense block. */
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
