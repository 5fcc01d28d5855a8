import { abortable } from '../abort.js'
import type { Engine } from '../models/engine.js'
import type { Tensor } from '../native/device.js'
import { CachedBlock } from './cached-block.js'
import { KeyValueCache, tokensAtOnce } from './key-value-cache.js'
import type { ResidentModel } from './resident-model.js'

/**
 * Predicts what follows some sequences of equal length, which grow. What it keeps of them are the keys and values of every block,
 * so that a token runs through the model once. It owns native memory until disposed of.
 */
export class Decoder {
  private readonly engine: Engine
  private caches: KeyValueCache[]
  /** How many tokens of each sequence the caches hold. */
  private cached = 0
  private frequencies: (Float32Array | undefined)[] = []

  /** `limit`: the number of tokens that a sequence has at most. */
  constructor(
    private readonly model: ResidentModel,
    private readonly count: number,
    private readonly limit: number,
  ) {
    this.engine = model.engine
    this.caches = this.emptyCaches()
  }

  /** The size of the keys and values, in bytes. */
  get bytes(): number {
    return this.caches.reduce((sum, { bytes }) => sum + bytes, 0)
  }

  /**
   * The logits of the token that follows each sequence, float32 [sequences, vocabulary], row-major. `sequences`: token ids, at
   * least one each; those of the call before, with more tokens behind them. Throws ABORTED.
   */
  async logits(sequences: readonly ArrayLike<number>[], signal?: AbortSignal): Promise<Float32Array> {
    const { engine, count } = this
    const total = sequences[0]?.length ?? 0
    // Where the frequencies depend on how long a sequence is, all keys have to be rotated anew.
    const frequencies = [...this.caches.keys()].map((block) => engine.rotaryOf(block)?.frequencies(total))
    if (frequencies.some((of, block) => of !== this.frequencies[block]) && this.cached > 0) this.forget()
    this.frequencies = frequencies
    const atOnce = Math.max(1, Math.floor(tokensAtOnce / count))
    for (;;) {
      const length = Math.min(atOnce, total - this.cached)
      const hidden = await this.run(sequences, length, total, signal)
      try {
        this.cached += length
        if (this.cached === total) return await this.lastLogits(hidden, length)
      } finally {
        hidden.dispose()
      }
    }
  }

  dispose(): void {
    for (const cache of this.caches) cache.dispose()
  }

  private forget(): void {
    this.dispose()
    this.caches = this.emptyCaches()
    this.cached = 0
  }

  private emptyCaches(): KeyValueCache[] {
    const { engine, model, count, limit } = this
    return model.windows.map((window) => new KeyValueCache(engine.device, count, limit, window))
  }

  /** Runs the next `length` tokens of each sequence through all blocks; the caller owns the hidden states, [count · length, hidden]. */
  private async run(
    all: readonly ArrayLike<number>[],
    length: number,
    total: number,
    signal: AbortSignal | undefined,
  ): Promise<Tensor> {
    const { engine, model, count, caches, cached: start } = this
    const { device } = engine
    const sequences = { count, length, start, total }
    const ids = Int32Array.from(
      { length: count * length },
      (_, t) => all[Math.floor(t / length)]![start + (t % length)]!,
    )
    const batch = { sequences, hidden: model.embed(sequences, ids) }
    const pass = async (index: number) => {
      abortable(signal)
      await model.withBlock(index, count * length, async (weights, strips) => {
        const run = engine.runBlock(
          index,
          weights,
          batch,
          (placement) => new CachedBlock(device, weights, index, placement, caches[index]!, strips),
        )
        const output = await run.finish()
        batch.hidden.dispose()
        batch.hidden = output
      })
    }
    const indices = caches.keys()
    try {
      // A prompt takes its time: it waits between blocks, so that a signal is heard.
      if (length > 1) await engine.paced([...indices], pass)
      else for (const index of indices) await pass(index)
    } catch (error) {
      batch.hidden.dispose()
      throw error
    }
    return batch.hidden
  }

  /** The logits at each sequence's last token, [count, vocabulary], of hidden states [count · length, hidden]. */
  private async lastLogits(hidden: Tensor, length: number): Promise<Float32Array> {
    const { device } = this.engine
    const result = device.tidy(() => {
      if (length === 1) return this.model.logits(hidden)
      const last = Int32Array.from({ length: this.count }, (_, s) => (s + 1) * length - 1)
      const rows = device.upload(last, [last.length])
      return this.model.logits(device.embedding(hidden, rows, hidden.dtype))
    })
    try {
      return await device.readFloat32(result)
    } finally {
      result.dispose()
    }
  }
}
