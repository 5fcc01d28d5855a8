import type { LinearGroup } from '../models/architecture.js'
import type { Device, Tensor } from '../native/device.js'
import type { PruningMethod } from './options.js'

/** What calibration has seen of the input that a group of linears shares. */
export interface GroupStatistics {
  /** The layers of the group that are to be pruned, by name below the block's prefix. */
  names: string[]
  columns: number
  /** Rows of activations seen. */
  tokens: number
  /** sparsegpt: Σ scale · x xᵀ, float32 [columns, columns], upper triangle. wanda: Σ scale · x², float32 [columns]. */
  sums: Tensor
}

/**
 * Accumulates, for each group of linears of a block that share one input, what the method needs to know of that input. One
 * Gram matrix serves all linears of the group.
 */
export class Statistics {
  private readonly groups = new Map<string, GroupStatistics>()

  constructor(
    private readonly device: Device,
    private readonly method: Exclude<PruningMethod, 'magnitude'>,
    /** Of every product: 2 / samples makes the solver's loss the reference's. */
    private readonly scale: number,
    private readonly selected: (name: string) => boolean,
  ) {}

  /** Adds the group's input; ignores groups of which no layer is to be pruned. */
  add({ names, input }: LinearGroup): void {
    const pruned = names.filter(this.selected)
    if (pruned.length === 0) return
    const key = names.join()
    let group = this.groups.get(key)
    if (!group) {
      const columns = input.width
      const shape = this.method === 'sparsegpt' ? [columns, columns] : [columns]
      const sums = this.device.within([], () => this.device.zeros('float32', shape))
      group = { names: pruned, columns, tokens: 0, sums }
      this.groups.set(key, group)
    }
    group.tokens += input.rows
    if (this.method === 'sparsegpt') this.device.accumulateGram(group.sums, input, this.scale)
    else this.device.accumulateSquares(group.sums, input, this.scale)
  }

  /** Hands over what was collected for one group; the caller disposes of it. */
  take(group: LinearGroup): GroupStatistics | undefined {
    const key = group.names.join()
    const taken = this.groups.get(key)
    this.groups.delete(key)
    return taken
  }

  /** Hands over everything, in the order of the block; the caller disposes of it. */
  takeAll(): GroupStatistics[] {
    const taken = [...this.groups.values()]
    this.groups.clear()
    return taken
  }

  dispose(): void {
    for (const { sums } of this.takeAll()) sums.dispose()
  }
}
