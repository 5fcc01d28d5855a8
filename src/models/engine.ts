import { setMaxListeners } from 'node:events'
import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import type { Checkpoint } from '../files/checkpoint.js'
import type { Device, Tensor } from '../native/device.js'
import { loadTokenizer, type Tokenizer } from '../text/tokenizer.js'
import type { Architecture } from './architecture.js'
import { BlockRun } from './block-run.js'
import { BlockWeights } from './block-weights.js'
import type { Block } from './block.js'
import { EagerBlock, type Placement, type RotaryTables } from './eager-block.js'
import { Head } from './head.js'
import { rotaryAngles, type Rotary } from './rotary.js'
import { positionsOf, type Sequences } from './sequences.js'
import type { BlockPass } from './steps.js'
import type { Weights } from './weights.js'

/** Some sequences on their way through the model. */
export interface Batch {
  sequences: Sequences
  /** The hidden states, [tokens, hidden]. */
  hidden: Tensor
  /** The position of every token, int32 [tokens], where they are not those of `sequences`. */
  positions?: Tensor
}

/** Moves a tensor out of the device's memory until it is used again. */
export type Offload = (tensor: Tensor) => void

/** What a job leaves for the next one of its kind. It is disposed of when another job begins, and with the engine. */
export interface Kept {
  dispose(): void
}

/** A model on a device as pruning and evaluation work with it: one block at a time in the device's memory. */
export class Engine {
  private tokenizerPromise: Promise<Tokenizer> | undefined
  /** The angles by the frequencies that they are of, up to the longest sequence so far. */
  private readonly rotary = new Map<Float32Array, RotaryTables>()
  private readonly positions = new Map<string, Tensor>()
  private readonly closing = new AbortController()
  private readonly jobs = new Set<Promise<unknown>>()
  private freed: Promise<void> | undefined
  private current: Kept | undefined

  constructor(
    readonly device: Device,
    readonly architecture: Architecture,
    readonly weights: Weights,
    private currentCheckpoint: Checkpoint,
    /** The hub id, or the name of the folder, that the model was loaded from. */
    readonly name: string,
  ) {
    // Each job that runs listens.
    setMaxListeners(0, this.closing.signal)
  }

  get checkpoint(): Checkpoint {
    return this.currentCheckpoint
  }

  get folder(): string {
    return this.currentCheckpoint.folder
  }

  /** Whether dispose() has been called. */
  get disposed(): boolean {
    return this.closing.signal.aborted
  }

  get vocabularySize(): number {
    return this.architecture.vocabularySize
  }

  /** The tokenizer of the model's folder. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
  tokenizer(): Promise<Tokenizer> {
    this.tokenizerPromise ??= loadTokenizer(this.folder)
    return this.tokenizerPromise
  }

  /** Ends the tokenizer's process, if there is one. */
  async closeTokenizer(): Promise<void> {
    const tokenizer = await this.tokenizerPromise
    tokenizer?.close()
  }

  /**
   * Runs `body`, a job that uses the model. The signal that it gets fires with `signal`, and when the model is disposed of, which
   * waits for the job to end. Throws ABORTED when the model has been disposed of. With `keeping` what has been kept stays.
   */
  async job<T>(
    signal: AbortSignal | undefined,
    body: (signal: AbortSignal) => Promise<T>,
    { keeping = false } = {},
  ): Promise<T> {
    if (!keeping) this.keep(undefined)
    const stop = new AbortController()
    const sources = [this.closing.signal, ...(signal ? [signal] : [])]
    const abort = () => stop.abort(sources.find(({ aborted }) => aborted)?.reason)
    for (const source of sources) source.addEventListener('abort', abort)
    if (sources.some(({ aborted }) => aborted)) abort()
    const run = async () => {
      abortable(stop.signal)
      return body(stop.signal)
    }
    const running = run()
    this.jobs.add(running)
    try {
      return await running
    } finally {
      this.jobs.delete(running)
      for (const source of sources) source.removeEventListener('abort', abort)
    }
  }

  get kept(): Kept | undefined {
    return this.current
  }

  /** Keeps what a job has made for the next one, in the place of what was kept. */
  keep(kept: Kept | undefined): void {
    this.current?.dispose()
    this.current = kept
  }

  /** Stops the jobs that run and frees native memory and threads. The model cannot be used afterwards. */
  dispose(): Promise<void> {
    this.freed ??= this.free()
    return this.freed
  }

  private async free(): Promise<void> {
    this.closing.abort(new SparseGptError('ABORTED', 'the model has been disposed of'))
    await Promise.allSettled(this.jobs)
    this.keep(undefined)
    this.weights.dispose()
    for (const { cosine, sine } of this.rotary.values()) for (const table of [cosine, sine]) table.dispose()
    for (const tensor of this.positions.values()) tensor.dispose()
    await this.device.close()
  }

  /** The length of windows: `wanted`, or the model's context, at most 2048. Throws as checkSequence does. */
  sequenceLength(wanted: number | undefined): number {
    const length = wanted ?? Math.min(this.architecture.contextLength, 2048)
    this.checkSequence(length)
    return length
  }

  /** Throws INVALID_OPTION when the model has no positions for that many tokens. */
  checkSequence(sequence: number): void {
    const longest = this.architecture.contextLength
    if (sequence > longest) {
      const message = `sequence length ${sequence} is longer than the model's context of ${longest} tokens`
      throw new SparseGptError('INVALID_OPTION', message)
    }
  }

  /** How many windows of `sequence` tokens to run at once: enough to fill the machine, few enough to stay in memory. */
  windowsPerBatch(sequence: number): number {
    const elements = 2 ** 23 // of the widest activation: 32 MiB in float32
    const tokens = Math.min(4096, Math.floor(elements / this.architecture.widestActivation))
    return Math.max(1, Math.floor(tokens / sequence))
  }

  /** The embedded windows; those of a batch are of one length. */
  embed(batches: readonly (readonly Int32Array[])[], offload?: Offload): Batch[] {
    const embedBatch = (windows: readonly Int32Array[]) => {
      const sequences = { count: windows.length, length: windows[0]?.length ?? 0, start: 0 }
      const ids = new Int32Array(sequences.count * sequences.length)
      windows.forEach((window, i) => ids.set(window, i * sequences.length))
      const hidden = this.device.tidy(() => {
        const uploaded = this.device.upload(ids, [ids.length])
        return this.architecture.embed(this.weights, this.device, uploaded, this.positionsOf(sequences))
      })
      offload?.(hidden)
      return { sequences, hidden }
    }
    return this.weights.passing(() => batches.map(embedBatch))
  }

  /** A run of `batch` through a block; through the block behind the last, to what the head reads. `implement` says who carries the block's operations out; by default they are enqueued at once. */
  runBlock(
    index: number,
    weights: BlockWeights,
    { sequences, hidden, positions: given }: Batch,
    implement: (placement: Placement) => Block = (placement) =>
      new EagerBlock(this.device, weights, index, placement),
  ): BlockRun {
    // The run has handles of its own: other runs may make the engine replace these tensors meanwhile.
    const positions = (given ?? this.positionsOf(sequences)).share()
    const tables = this.rotaryTables(index, sequences.total ?? sequences.start + sequences.length)
    const rotary = tables && { cosine: tables.cosine.share(), sine: tables.sine.share() }
    const block = implement({ sequences, positions, rotary })
    const held = rotary ? [positions, rotary.cosine, rotary.sine] : [positions]
    return new BlockRun(this.device, block, this.pass(index, block, hidden), held)
  }

  /** The weights of a block; of the block behind the last those of the model's end. The caller disposes of them. */
  loadBlock(index: number): BlockWeights {
    const { architecture, device, weights } = this
    const spec = index < architecture.blockCount ? architecture.block(index) : architecture.final
    return new BlockWeights(device, weights, spec)
  }

  /** Of the block behind the last: what leads to the head. */
  private *pass(index: number, block: Block, hidden: Tensor): BlockPass {
    const { architecture } = this
    return index < architecture.blockCount
      ? yield* architecture.forward(block, hidden)
      : architecture.finish(block, hidden)
  }

  /**
   * The first `count` blocks in turn; each one's weights are disposed of when the next is asked for. Where weights arrive while
   * the device works, the next block is loaded ahead; elsewhere that would only cost memory. `growing`: whether what is done with a
   * block depends on how many came before it, which matters to an engine that only plans.
   */
  *blocks(
    count = this.architecture.blockCount,
    _options: { growing?: boolean } = {},
  ): Generator<[index: number, weights: BlockWeights]> {
    const ahead = this.device.traits.loadsAhead ? 1 : 0
    const loaded: BlockWeights[] = []
    try {
      for (let index = 0; index < count; index++) {
        while (loaded.length <= ahead && index + loaded.length < count) {
          loaded.push(this.loadBlock(index + loaded.length))
        }
        yield [index, loaded[0] as BlockWeights]
        loaded.shift()?.dispose()
      }
    } finally {
      for (const weights of loaded) weights.dispose()
    }
  }

  /** Replaces the hidden states of each batch by the block's output. `step` is called after each batch. */
  async passBlock(
    index: number,
    weights: BlockWeights,
    batches: readonly Batch[],
    { step, offload }: { step?: () => void; offload?: Offload | undefined } = {},
  ): Promise<void> {
    const pass = async (batch: Batch) => {
      const output = await this.runBlock(index, weights, batch).finish()
      batch.hidden.dispose()
      batch.hidden = output
      offload?.(output)
    }
    await this.paced(batches, pass, step)
  }

  /**
   * Enqueues the work of each item, at most two items ahead of the device, so that it never waits for JavaScript and memory
   * stays bounded.
   */
  async paced<T>(
    items: readonly T[],
    enqueue: (item: T) => void | Promise<void>,
    step?: () => void,
  ): Promise<void> {
    let previous: Promise<void> | undefined
    for (const item of items) {
      await enqueue(item)
      const current = this.device.synchronize()
      current.catch(() => undefined) // reported when awaited
      await previous
      if (previous) step?.()
      previous = current
    }
    await previous
    if (previous) step?.()
  }

  /** Makes the model's end, from the last block's output on; the caller disposes of it. */
  head(): Head {
    return new Head(this.device, this.architecture, this.weights)
  }

  /** Takes all weights from `checkpoint` from then on. */
  reopen(checkpoint: Checkpoint): void {
    this.currentCheckpoint = checkpoint
    this.weights.reopen(checkpoint)
  }

  /** The positions of the tokens, int32 [count · length]; the engine's own. */
  positionsOf(sequences: Sequences): Tensor {
    const key = Object.values(sequences).join()
    const known = this.positions.get(key)
    const positions = known ? undefined : positionsOf(sequences)
    const tensor = known ?? this.device.within([], () => this.device.upload(positions!, [positions!.length]))
    // Batches are of few sizes; the one that has not been asked for longest goes.
    this.positions.delete(key)
    this.positions.set(key, tensor)
    const [[oldest, tensorOfOldest] = []] = this.positions
    if (this.positions.size > 16 && oldest !== undefined) {
      this.positions.delete(oldest)
      tensorOfOldest?.dispose()
    }
    return tensor
  }

  /** How positions rotate in a block; undefined where they do not. */
  rotaryOf(block: number): Rotary | undefined {
    const { rotary, blockCount } = this.architecture
    if (block === blockCount) return undefined
    return typeof rotary === 'function' ? rotary(block) : rotary
  }

  /** The frequencies that each block rotates sequences of this many tokens with; always the same arrays. */
  frequencies(sequence: number): (Float32Array | undefined)[] {
    const blocks = Array.from({ length: this.architecture.blockCount }, (_, block) => block)
    return blocks.map((block) => this.rotaryOf(block)?.frequencies(sequence))
  }

  /** The angles of at least the positions below `end`, in a block; the engine's own. */
  rotaryTables(block: number, end: number): RotaryTables | undefined {
    const rotary = this.rotaryOf(block)
    if (!rotary) return undefined
    const frequencies = rotary.frequencies(end)
    const known = this.rotary.get(frequencies)
    if (known && known.cosine.rows >= end) return known
    const { cosine, sine, shape } = rotaryAngles(
      frequencies,
      rotary.scale,
      Math.max(end, 2 * (known?.cosine.rows ?? 0)),
    )
    const tables = this.device.within([], () => ({
      cosine: this.device.upload(cosine, shape),
      sine: this.device.upload(sine, shape),
    }))
    for (const table of known ? [known.cosine, known.sine] : []) table.dispose()
    this.rotary.set(frequencies, tables)
    return tables
  }
}
