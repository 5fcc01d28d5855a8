import type { Device, Tensor } from '../native/device.js'
import type { LinearGroup } from '../models/steps.js'
import type { Statistic } from './statistic.js'

/** What calibration has seen of the input that a group of linears shares. */
export interface GroupStatistics {
  /** The layers of the group that are to be pruned, by name below the block's prefix. */
  names: string[]
  columns: number
  /** The number of rows of activations seen. */
  tokens: number
  /** The sum of the statistic, float32. */
  sum: Tensor
  /**
   * Σ x (y − x)ᵀ over the inputs x of the pruned stream and y of the dense one, float32 [columns, columns], scaled as `sum`;
   * undefined without a dense stream, and for a routed expert, to which other tokens come in the two streams.
   */
  shift: Tensor | undefined
  /** The pool of a routed expert: LinearGroup.pool. */
  pool: string | undefined
  /** Whether too few tokens came, so that `sum` is the pool's; `tokens` are still the group's own. */
  pooled: boolean
}

interface Pool {
  sum: Tensor
  tokens: number
}

/** The sums of some parts of the windows that follow each other. */
interface PartialSum extends Pick<GroupStatistics, 'sum' | 'shift'> {
  /** The number of parts. */
  parts: number
}

/** What is collected, and apart from it what was collected of the parts of the windows before. */
interface Collected extends GroupStatistics {
  /** The part that the windows under way are of. */
  part: number
  before: PartialSum[]
}

/**
 * Accumulates, for each group of linears of a block that share one input, what the method needs to know of that input. One
 * Gram matrix serves all linears of the group.
 */
export class Statistics {
  private readonly groups = new Map<string, Collected>()
  private readonly pools = new Map<string, Pool>()

  constructor(
    private readonly device: Device,
    private readonly statistic: Statistic,
    /** The factor of every summand: 2 / samples makes the solver's loss the reference's. */
    private readonly scale: number,
    private readonly selected: (name: string) => boolean,
  ) {}

  /**
   * Adds the group's input, and its shift from that of `reference`, the same group of the dense stream; ignores groups of which no
   * layer is to be pruned. `part`: of the windows, 0 and up; each part has a sum of its own, and these are added in pairs, pairs of pairs and
   * so on, so that it makes no difference where they are collected.
   */
  add({ names, input, pool }: LinearGroup, reference?: LinearGroup, part = 0): void {
    const pruned = names.filter(this.selected)
    if (pruned.length === 0) return
    const key = names.join()
    let group = this.groups.get(key)
    const columns = input.width
    const zeros = (shape: number[]) => this.device.within([], () => this.device.zeros('float32', shape))
    const begun = () => ({
      part,
      sum: zeros(this.statistic.shape(columns)),
      shift: reference && pool === undefined ? zeros([columns, columns]) : undefined,
    })
    if (!group) {
      group = { names: pruned, columns, tokens: 0, pool, pooled: false, before: [], ...begun() }
      this.groups.set(key, group)
    } else if (group.part !== part) {
      this.endPart(group)
      Object.assign(group, begun())
    }
    group.tokens += input.rows
    this.statistic.add(this.device, group.sum, input, this.scale)
    if (group.shift && reference) this.addShift(group.shift, input, reference.input)
  }

  /** Puts what was collected of a part to the parts before, of which those are added that are of as many parts. */
  private endPart({ before, sum, shift }: Collected): void {
    before.push({ parts: 1, sum, shift })
    while (before.length > 1 && before.at(-1)!.parts === before.at(-2)!.parts) {
      const [a, b] = before.splice(-2) as [PartialSum, PartialSum]
      this.device.add(a.sum, b.sum)
      if (a.shift && b.shift) this.device.add(a.shift, b.shift)
      b.sum.dispose()
      b.shift?.dispose()
      before.push({ ...a, parts: a.parts + b.parts })
    }
  }

  /** Adds the parts of a group up, of which there are as many as a power of two. */
  private joinParts(group: Collected): Collected {
    if (group.before.length === 0) return group
    this.endPart(group)
    const [{ sum, shift }] = group.before as [PartialSum]
    return Object.assign(group, { sum, shift, before: [] })
  }

  private addShift(shift: Tensor, input: Tensor, reference: Tensor): void {
    this.device.tidy(() => {
      const difference = this.device.cast(input, input.dtype)
      this.device.scale(difference, -1)
      this.device.add(difference, reference)
      this.device.accumulateProduct(shift, input, difference, this.scale)
      return undefined
    })
  }

  /** Lets `sum` add up what several ranks have collected of one group, or of all: before it is taken. */
  async combine(
    sum: (groups: readonly GroupStatistics[], statistic: Statistic) => Promise<void>,
    one?: LinearGroup,
  ): Promise<void> {
    const key = one?.names.join()
    const groups = [...this.groups].flatMap(([name, group]) =>
      name === (key ?? name) ? [this.joinParts(group)] : [],
    )
    await sum(groups, this.statistic)
  }

  /**
   * Hands over what was collected for one group; the caller disposes of it. Its pool holds what was handed over before it.
   */
  take({ names }: LinearGroup): GroupStatistics | undefined {
    const key = names.join()
    const taken = this.groups.get(key)
    this.groups.delete(key)
    if (taken) {
      this.joinParts(taken)
      this.intoPool(taken)
      this.fromPool(taken)
    }
    return taken
  }

  /** Hands over everything, in the order of the block; the caller disposes of it. */
  takeAll(): GroupStatistics[] {
    const taken = [...this.groups.values()].map((group) => this.joinParts(group))
    this.groups.clear()
    for (const group of taken) this.intoPool(group)
    for (const group of taken) this.fromPool(group)
    return taken
  }

  dispose(): void {
    const groups = [...this.groups.values()]
    for (const { sum } of [...groups, ...this.pools.values()]) sum.dispose()
    for (const { shift, before } of groups)
      for (const tensor of [shift, ...before.flatMap((part) => [part.sum, part.shift])]) tensor?.dispose()
    this.groups.clear()
    this.pools.clear()
  }

  private intoPool({ pool: name, tokens, sum }: GroupStatistics): void {
    if (name === undefined) return
    const pool = this.pools.get(name)
    if (pool) {
      this.device.add(pool.sum, sum)
      pool.tokens += tokens
    } else {
      this.pools.set(name, { tokens, sum: this.copy(sum) })
    }
  }

  /** Gives the group its pool's sum where fewer tokens than columns leave its own Gram matrix singular. */
  private fromPool(group: GroupStatistics): void {
    const pool = group.pool === undefined ? undefined : this.pools.get(group.pool)
    if (!pool || group.tokens >= group.columns || pool.tokens <= group.tokens) return
    group.sum.dispose()
    group.sum = this.copy(pool.sum)
    group.pooled = true
  }

  private copy(sum: Tensor): Tensor {
    return this.device.within([], () => this.device.cast(sum, 'float32'))
  }
}
