import type { Device, Tensor } from '../native/device.js'
import { operations } from '../native/operations.js'

/** The number of tokens of all sequences together that run through the model at once. */
export const tokensAtOnce = 512

/** The number of rows of a new cache. */
const fewestRows = 64

/** The keys and values of the tokens so far, as attention takes them. */
export interface Past {
  /** [sequences · rows, kvHeads · headDim]; the rows behind a sequence's last token hold anything. */
  keys: Tensor
  /** As the keys. */
  values: Tensor
  /** The row of each sequence at which the tokens that were appended last begin. */
  start: number
}

/**
 * The keys and values of a block's tokens, of some sequences of equal length. It grows with them; where queries see no more than a
 * window it holds that and the tokens that run at once. It owns native memory until disposed of.
 */
export class KeyValueCache {
  private buffers: { keys: Tensor; values: Tensor } | undefined
  private capacity = 0
  private held = 0

  /** `limit`: the most tokens that a sequence will have; `window`: how many keys a query sees, undefined for all. */
  constructor(
    private readonly device: Device,
    private readonly sequences: number,
    private readonly limit: number,
    private readonly window: number | undefined,
  ) {}

  /** The size of the memory, in bytes. */
  get bytes(): number {
    return this.buffers ? this.buffers.keys.bytes + this.buffers.values.bytes : 0
  }

  /**
   * Adds the next tokens' keys and values, each [sequences · tokens, kvHeads · headDim]; they stay the caller's, what is returned the
   * cache's.
   */
  append(keys: Tensor, values: Tensor): Past {
    const added = keys.rows / this.sequences
    const buffers = this.reserve(added, keys, values)
    const start = this.held
    this.copy(keys, 0, buffers.keys, start, added)
    this.copy(values, 0, buffers.values, start, added)
    this.held += added
    return { ...buffers, start }
  }

  /** Makes room for another token of every sequence, behind those that there are. */
  makeRoom(): void {
    if (this.buffers) this.reserve(1, this.buffers.keys, this.buffers.values)
  }

  /** Whether another token goes into `memory`, which the keys had before. */
  hasRoomIn(memory: Tensor | undefined): boolean {
    return this.buffers?.keys === memory && this.held < this.capacity
  }

  /** What holds the keys. */
  get memory(): Tensor | undefined {
    return this.buffers?.keys
  }

  /** Counts the token that a recorded append has added. */
  advance(): void {
    this.held++
  }

  dispose(): void {
    this.buffers?.keys.dispose()
    this.buffers?.values.dispose()
    this.buffers = undefined
  }

  /** Makes room for so many more tokens; of those that there are the ones stay that later queries see. */
  private reserve(added: number, keys: Tensor, values: Tensor): { keys: Tensor; values: Tensor } {
    const { buffers: before, device, held, window } = this
    if (before && held + added <= this.capacity) return before
    const kept = Math.min(held, (window ?? Infinity) - 1)
    const most = Math.min(this.limit, (window ?? Infinity) - 1 + Math.max(added, tokensAtOnce))
    this.capacity = Math.max(kept + added, Math.min(most, Math.max(2 * this.capacity, fewestRows)))
    const make = ({ dtype, width }: Tensor) => device.empty(dtype, [this.sequences * this.capacity, width])
    const after = device.within([], () => ({ keys: make(keys), values: make(values) }))
    this.buffers = after
    this.held = kept
    if (before) {
      if (kept > 0) {
        this.copy(before.keys, held - kept, after.keys, 0, kept)
        this.copy(before.values, held - kept, after.values, 0, kept)
      }
      before.keys.dispose()
      before.values.dispose()
    }
    return after
  }

  /** Copies `count` rows of every sequence, from the row `first` of each on, to the row `at` of each. */
  private copy(from: Tensor, first: number, to: Tensor, at: number, count: number): void {
    const { device, sequences } = this
    const convert = (source: Tensor, target: Tensor) => {
      // Recorded, the next token goes behind this one.
      const call = { ...operations.cast.call(source, to.dtype, target), advance: { out: to.width } }
      device.within([], () => device.perform('cast', call))
      source.dispose()
      target.dispose()
    }
    const [rows, capacity] = [from.rows / sequences, to.rows / sequences]
    if (sequences > 1 && rows === 1 && count === 1) {
      // A sequence's rows side by side: one copy for all sequences.
      const wide = to.reshape([sequences, capacity * to.width])
      convert(from.share(), wide.columns(at * to.width, to.width))
      wide.dispose()
      return
    }
    for (let s = 0; s < sequences; s++)
      convert(from.rowRange(s * rows + first, count), to.rowRange(s * capacity + at, count))
  }
}
