import { abortable } from '../abort.js'
import type { Engine } from '../models/engine.js'
import type { Tensor } from '../native/device.js'
import { CachedBlock } from './cached-block.js'
import { KeyValueCache, tokensAtOnce } from './key-value-cache.js'
import { RecordedPass } from './recorded-pass.js'
import type { ResidentModel } from './resident-model.js'

/** A pass of the next tokens of each sequence. */
interface PassOptions {
  /** The position of the first. */
  start: number
  /** How many tokens of each. */
  length: number
  /** How long the sequences are that they are a part of. */
  total: number
  signal: AbortSignal | undefined
  /** Their positions, int32 [count · length]; by default the engine's. */
  positions?: Tensor
}

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
  /** The pass of a token, once one has run. */
  private recorded: RecordedPass | undefined
  /** False once a pass could not be recorded, as where experts are chosen. */
  private repeats = true

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
    const frequencies = engine.frequencies(total)
    if (frequencies.some((of, block) => of !== this.frequencies[block]) && this.cached > 0) this.forget()
    this.frequencies = frequencies
    const atOnce = Math.max(1, Math.floor(tokensAtOnce / count))
    for (;;) {
      const length = Math.min(atOnce, total - this.cached)
      if (length === 1 && this.cached > 0 && this.repeats)
        return this.read(await this.nextLogits(sequences, total, signal))
      const hidden = await this.run(this.embed(sequences, length, total), {
        start: this.cached,
        length,
        total,
        signal,
      })
      try {
        this.cached += length
        if (this.cached === total) return await this.read(this.lastLogits(hidden, length))
      } finally {
        hidden.dispose()
      }
    }
  }

  dispose(): void {
    this.recorded?.dispose()
    this.recorded = undefined
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

  /** The logits of the token behind the last of each sequence, the only one that has not been run; the caller owns them. */
  private async nextLogits(
    sequences: readonly ArrayLike<number>[],
    total: number,
    signal: AbortSignal | undefined,
  ): Promise<Tensor> {
    abortable(signal)
    const { engine, model, count, caches, cached: position } = this
    const { device } = engine
    const hidden = this.embed(sequences, 1, total)
    this.cached++
    if (this.recorded?.reaches(total)) return this.recorded.repeat(hidden, position)
    this.recorded?.dispose()
    // What grows does so before it is recorded.
    for (const cache of caches) cache.makeRoom()
    const tables = [...caches.keys()].map((block) => engine.rotaryTables(block, total))
    const longest = Math.min(...tables.map((table) => table?.cosine.rows ?? Infinity))
    const positions = device.within([], () => device.upload(new Int32Array(count).fill(position), [count]))
    const input = { hidden: hidden.share(), positions }
    const limits = { caches, position, longest }
    const { logits, pass } = await RecordedPass.record(device, input, limits, async () => {
      const last = await this.run(hidden, { start: position, length: 1, total, signal, positions })
      const result = device.tidy(() => model.logits(last))
      last.dispose()
      return result
    })
    this.recorded = pass
    this.repeats = pass !== undefined
    return logits
  }

  /** The hidden states of the next `length` tokens of each sequence, [count · length, hidden]; the caller owns them. */
  private embed(all: readonly ArrayLike<number>[], length: number, total: number): Tensor {
    const { count, cached: start } = this
    const ids = Int32Array.from(
      { length: count * length },
      (_, t) => all[Math.floor(t / length)]![start + (t % length)]!,
    )
    return this.model.embed({ count, length, start, total }, ids)
  }

  /** Runs the next `length` tokens of each sequence through all blocks; the caller owns the hidden states, [count · length, hidden]. */
  private async run(
    hidden: Tensor,
    { start, length, total, signal, positions }: PassOptions,
  ): Promise<Tensor> {
    const { engine, model, count, caches } = this
    const { device } = engine
    const sequences = { count, length, start, total }
    const batch = { sequences, hidden, ...(positions && { positions }) }
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
  private lastLogits(hidden: Tensor, length: number): Tensor {
    const { device } = this.engine
    return device.tidy(() => {
      if (length === 1) return this.model.logits(hidden)
      const last = Int32Array.from({ length: this.count }, (_, s) => (s + 1) * length - 1)
      const rows = device.upload(last, [last.length])
      return this.model.logits(device.embedding(hidden, rows, hidden.dtype))
    })
  }

  /** Reads logits and disposes of them. */
  private async read(logits: Tensor): Promise<Float32Array> {
    try {
      return await this.engine.device.readFloat32(logits)
    } finally {
      logits.dispose()
    }
  }
}
