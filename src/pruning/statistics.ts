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
  /** Of routed experts: LinearGroup.pool. */
  pool: string | undefined
  /** Too few tokens came, so `sums` are those of the pool; `tokens` are still the group's own. */
  pooled: boolean
}

interface Pool {
  sums: Tensor
  tokens: number
}

/**
 * Accumulates, for each group of linears of a block that share one input, what the method needs to know of that input. One
 * Gram matrix serves all linears of the group.
 */
export class Statistics {
  private readonly groups = new Map<string, GroupStatistics>()
  private readonly pools = new Map<string, Pool>()

  constructor(
    private readonly device: Device,
    private readonly method: Exclude<PruningMethod, 'magnitude'>,
    /** Of every product: 2 / samples makes the solver's loss the reference's. */
    private readonly scale: number,
    private readonly selected: (name: string) => boolean,
  ) {}

  /** Adds the group's input; ignores groups of which no layer is to be pruned. */
  add({ names, input, pool }: LinearGroup): void {
    const pruned = names.filter(this.selected)
    if (pruned.length === 0) return
    const key = names.join()
    let group = this.groups.get(key)
    if (!group) {
      const columns = input.width
      const shape = this.method === 'sparsegpt' ? [columns, columns] : [columns]
      const sums = this.device.within([], () => this.device.zeros('float32', shape))
      group = { names: pruned, columns, tokens: 0, sums, pool, pooled: false }
      this.groups.set(key, group)
    }
    group.tokens += input.rows
    if (this.method === 'sparsegpt') this.device.accumulateGram(group.sums, input, this.scale)
    else this.device.accumulateSquares(group.sums, input, this.scale)
  }

  /**
   * Hands over what was collected for one group; the caller disposes of it. Its pool holds what was handed over before it.
   */
  take({ names }: LinearGroup): GroupStatistics | undefined {
    const key = names.join()
    const taken = this.groups.get(key)
    this.groups.delete(key)
    if (taken) {
      this.intoPool(taken)
      this.fromPool(taken)
    }
    return taken
  }

  /** Hands over everything, in the order of the block; the caller disposes of it. */
  takeAll(): GroupStatistics[] {
    const taken = [...this.groups.values()]
    this.groups.clear()
    for (const group of taken) this.intoPool(group)
    for (const group of taken) this.fromPool(group)
    return taken
  }

  dispose(): void {
    for (const { sums } of [...this.groups.values(), ...this.pools.values()]) sums.dispose()
    this.groups.clear()
    this.pools.clear()
  }

  private intoPool({ pool: name, tokens, sums }: GroupStatistics): void {
    if (name === undefined) return
    const pool = this.pools.get(name)
    if (pool) {
      this.device.add(pool.sums, sums)
      pool.tokens += tokens
    } else {
      this.pools.set(name, { tokens, sums: this.copy(sums) })
    }
  }

  /** Fewer tokens than columns leave the Gram matrix singular: the pool's then says more of the inputs to come. */
  private fromPool(group: GroupStatistics): void {
    const pool = group.pool === undefined ? undefined : this.pools.get(group.pool)
    if (!pool || group.tokens >= group.columns || pool.tokens <= group.tokens) return
    group.sums.dispose()
    group.sums = this.copy(pool.sums)
    group.pooled = true
  }

  private copy(sums: Tensor): Tensor {
    return this.device.within([], () => this.device.cast(sums, 'float32'))
  }
}
