import type { AttentionHeads } from '../models/block.js'
import type { BlockWeights } from '../models/block-weights.js'
import { EagerBlock, type Placement } from '../models/eager-block.js'
import type { Device, Tensor } from '../native/device.js'
import type { PrefixGroup } from './prefix-groups.js'

/** Tokens that lie one after another and attend to each other, and those of a prefix before them. */
interface Segment {
  /** The row of the first token in the activations. */
  first: number
  count: number
}

/** A group of sequences in the activations: the prefix, then the rest of every sequence. */
interface PackedGroup {
  prefix: Segment
  rests: Segment[]
}

/** Sequences of any lengths in one batch of activations, [tokens, features], without padding: each prefix is there once. */
export class PackedBatch {
  /** The token ids. */
  readonly ids: Int32Array
  /** The position of every token in its sequence. */
  readonly positions: Int32Array
  /** The number of tokens of the longest sequence. */
  readonly longest: number
  private readonly packed: PackedGroup[] = []
  private readonly places = new Map<Int32Array, { group: PackedGroup; rest: Segment }>()

  constructor(groups: readonly PrefixGroup[]) {
    this.ids = new Int32Array(groups.reduce((sum, group) => sum + tokensOf(group), 0))
    this.positions = new Int32Array(this.ids.length)
    this.longest = Math.max(...groups.flatMap(({ members }) => members.map(({ length }) => length)))
    let end = 0
    const put = (tokens: Int32Array, start: number): Segment => {
      this.ids.set(tokens, end)
      for (let i = 0; i < tokens.length; i++) this.positions[end + i] = start + i
      end += tokens.length
      return { first: end - tokens.length, count: tokens.length }
    }
    for (const { prefix, members } of groups) {
      const group: PackedGroup = { prefix: put(members[0]!.subarray(0, prefix), 0), rests: [] }
      for (const member of members) {
        const rest = put(member.subarray(prefix), prefix)
        group.rests.push(rest)
        this.places.set(member, { group, rest })
      }
      this.packed.push(group)
    }
  }

  get groups(): readonly Readonly<PackedGroup>[] {
    return this.packed
  }

  get sequences(): Iterable<Int32Array> {
    return this.places.keys()
  }

  /** The row in the activations of the token at `position` of a sequence of the batch. */
  rowOf(sequence: Int32Array, position: number): number {
    const { group, rest } = this.places.get(sequence)!
    const { prefix } = group
    return position < prefix.count ? prefix.first + position : rest.first + position - prefix.count
  }
}

/** The number of tokens that a group takes in a batch. */
export const tokensOf = ({ prefix, members }: PrefixGroup): number =>
  members.reduce((sum, { length }) => sum + length - prefix, prefix)

/** A block's pass of a packed batch: each sequence attends to itself and its prefix only. */
export class PackedBlock extends EagerBlock {
  constructor(
    device: Device,
    weights: BlockWeights,
    index: number,
    placement: Placement,
    private readonly batch: PackedBatch,
  ) {
    super(device, weights, index, placement)
  }

  override attention(q: Tensor, k: Tensor, v: Tensor, heads: AttentionHeads): Tensor {
    const { device } = this
    const shape = { ...this.attentionShape(heads), sequences: 1 }
    const out = device.empty(q.dtype, [q.rows, q.width])
    const rows = (x: Tensor, { first, count }: Segment) => device.adopt(x.rowRange(first, count))
    const attend = (queries: Segment, keys: Tensor, values: Tensor, start = 0) => {
      const part = device.attention(rows(q, queries), keys, values, { ...shape, start })
      device.cast(part, part.dtype, rows(out, queries))
    }
    /** The attention of the sequences of a group to their prefix and themselves; of the prefix to itself. */
    const attendGroup = ({ prefix, rests }: PackedGroup) => {
      const own = rests.filter(({ count }) => count > 0)
      const alone = prefix.count > 0 ? [prefix] : own
      for (const segment of alone) attend(segment, rows(k, segment), rows(v, segment))
      if (prefix.count === 0 || own.length === 0) return
      // The keys and values of the prefix, and behind them those of one sequence after another.
      const most = prefix.count + Math.max(...own.map(({ count }) => count))
      const joined = [k, v].map((x) => ({ x, all: device.empty(x.dtype, [most, x.width]) }))
      const put = (from: Segment, first: number) => {
        for (const { x, all } of joined)
          device.cast(rows(x, from), x.dtype, rows(all, { first, count: from.count }))
      }
      put(prefix, 0)
      for (const rest of own) {
        put(rest, prefix.count)
        attend(rest, joined[0]!.all, joined[1]!.all, prefix.count)
      }
    }
    for (const group of this.batch.groups) {
      device.tidy(() => {
        attendGroup(group)
        return undefined
      })
    }
    for (const tensor of [q, k, v]) tensor.dispose()
    return out
  }
}
