import type { BlockWeights } from '../models/block-weights.js'
import type { Engine } from '../models/engine.js'
import type { Head } from '../models/head.js'
import type { Sequences } from '../models/sequences.js'
import type { Tensor } from '../native/device.js'

/**
 * All weights of a model on its device, for passes of few tokens, which would take longer to load them. It owns native memory until
 * disposed of.
 */
export class ResidentModel {
  readonly blocks: BlockWeights[] = []
  readonly head: Head
  /** The tables that tokens are embedded with. */
  private readonly tables = new Map<string, Tensor>()

  /** Throws INVALID_CHECKPOINT, UNSUPPORTED_MODEL. */
  constructor(readonly engine: Engine) {
    try {
      for (let index = 0; index < engine.architecture.blockCount; index++)
        this.blocks.push(engine.loadBlock(index))
      this.head = engine.head()
    } catch (error) {
      for (const block of this.blocks) block.dispose()
      throw error
    }
  }

  /** The hidden states [count · length, hidden] of token ids. */
  embed(sequences: Sequences, ids: Int32Array): Tensor {
    const { architecture, device, weights } = this.engine
    return weights.holding(this.tables, () =>
      device.tidy(() => {
        const uploaded = device.upload(ids, [ids.length])
        return architecture.embed(weights, device, uploaded, this.engine.positionsOf(sequences))
      }),
    )
  }

  dispose(): void {
    for (const block of this.blocks) block.dispose()
    this.head.dispose()
    this.engine.weights.giveBack([...this.tables.values()])
    this.tables.clear()
  }
}
