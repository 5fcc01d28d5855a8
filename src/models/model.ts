import * as z from 'zod'
import { loadTokenizer, type Tokenizer } from '../calibration/tokenizer.js'
import { openCheckpoint, type Checkpoint } from '../checkpoint/checkpoint.js'
import { SparseGptError } from '../errors.js'
import { resolveModel } from '../hub/model-folder.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import { Device, type DeviceKind, type Tensor } from '../native/device.js'
import { parseOptions } from '../pruning/options.js'
import type { Architecture } from './architecture.js'
import { Block, BlockRun, type RotaryTables } from './block.js'
import { familyOf } from './registry.js'
import { rotaryAngles } from './rotary.js'
import { Weights, type BlockWeights } from './weights.js'

export interface LoadOptions {
  /** Default 'auto'. */
  device?: DeviceKind
  /** Element type of activations and matrices; sums are in float32 either way. Default 'float32'. */
  dtype?: 'float32' | 'bfloat16'
  /** Threads of the CPU device; 0 (default) for one per core. */
  threads?: number
  /** Called while a model is downloaded from the hub. */
  onDownload?: (progress: DownloadProgress) => void
  /** Stops a download. */
  signal?: AbortSignal
}

const loadOptions = z.strictObject({
  device: z.enum(['auto', 'cpu', 'cuda']).default('auto'),
  dtype: z.enum(['float32', 'bfloat16']).default('float32'),
  threads: z.int().min(0).max(1024).default(0),
  onDownload: z.custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function').optional(),
  signal: z.instanceof(AbortSignal).optional(),
})

export interface Logits {
  /** float32, row-major. */
  data: Float32Array
  /** [batch, sequence, vocabulary]. */
  shape: [number, number, number]
}

/** Some sequences of equal length on their way through the model. */
export interface Batch {
  /** Of each sequence. */
  sequence: number
  /** [sequences · sequence, hidden]. */
  hidden: Tensor
}

/** Moves a tensor out of the device's memory until it is used again. */
export type Offload = (tensor: Tensor) => void

/**
 * A causal language model: weights mapped from a folder in Hugging Face layout, one block at a time in the device's memory.
 */
export class Model {
  private tokenizerPromise: Promise<Tokenizer> | undefined
  private readonly rotary = new Map<number, RotaryTables>()
  private disposed = false

  /** See loadModel. */
  constructor(
    readonly device: Device,
    readonly architecture: Architecture,
    readonly weights: Weights,
    private currentCheckpoint: Checkpoint,
    /** The hub id, or the name of the folder, that it was loaded from. */
    readonly name: string,
  ) {}

  /** See loadModel. */
  static async load(pathOrHubId: string, options: LoadOptions = {}): Promise<Model> {
    const o = parseOptions(loadOptions, options, 'loadModel')
    const { folder, name } = await resolveModel(pathOrHubId, o)
    const checkpoint = await openCheckpoint(folder)
    const family = familyOf(checkpoint.config)
    const device = new Device(o.device, o.threads)
    try {
      const weights = new Weights(device, checkpoint, o.dtype)
      const architecture = family.build(checkpoint.config, weights)
      for (let i = 0; i < architecture.blockCount; i++) {
        const spec = architecture.block(i)
        for (const linear of spec.linears) weights.requireLinear(spec, linear)
      }
      return new Model(device, architecture, weights, checkpoint, name)
    } catch (error) {
      await device.close()
      throw error
    }
  }

  get checkpoint(): Checkpoint {
    return this.currentCheckpoint
  }

  get folder(): string {
    return this.currentCheckpoint.folder
  }

  /** The tokenizer of the model's folder. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
  tokenizer(): Promise<Tokenizer> {
    this.tokenizerPromise ??= loadTokenizer(this.folder)
    return this.tokenizerPromise
  }

  /**
   * The next-token logits at every position, float32 [batch, sequence, vocabulary].
   * `ids`: token ids, sequences of equal length. Throws INVALID_OPTION.
   */
  async logits(ids: readonly (readonly number[])[]): Promise<Logits> {
    const sequence = ids[0]?.length ?? 0
    if (sequence === 0 || ids.some((row) => row.length !== sequence)) {
      throw new SparseGptError('INVALID_OPTION', 'logits: ids must be one or more sequences of the same length >= 1')
    }
    this.checkSequence(sequence)
    const windows = ids.map((row) => Int32Array.from(row))
    windows.forEach((window, i) => this.checkTokens(window, ids[i] ?? []))
    const [batch] = this.embed([windows]) as [Batch]
    for (const [index, weights] of this.blocks()) await this.passBlock(index, weights, [batch])
    const owned: Tensor[] = []
    try {
      const logits = this.device.within(owned, () => {
        const { architecture, weights, device } = this
        const x = architecture.finish(weights, device, batch.hidden)
        const result = device.linear(x, architecture.head(weights), architecture.headBias?.(weights), 'float32')
        if (architecture.logitSoftcap !== undefined) device.softcap(result, architecture.logitSoftcap)
        return result
      })
      const data = await this.device.readFloat32(logits)
      return { data, shape: [ids.length, sequence, this.architecture.vocabularySize] }
    } finally {
      batch.hidden.dispose()
      for (const tensor of owned) tensor.dispose()
    }
  }

  /** Frees native memory and threads. The model cannot be used afterwards. */
  async dispose(): Promise<void> {
    if (this.disposed) return
    this.disposed = true
    this.weights.dispose()
    for (const tables of this.rotary.values()) {
      tables.cosine.dispose()
      tables.sine.dispose()
    }
    await this.device.close()
  }

  // --- for pruning and evaluation ---

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

  /** Throws INVALID_OPTION when an id is no integer in [0, vocabulary); `given` is what the ids were before conversion. */
  checkTokens(ids: Int32Array, given: ArrayLike<number> = ids): void {
    const limit = this.architecture.vocabularySize
    ids.forEach((id, i) => {
      if (id < 0 || id >= limit || id !== given[i]) {
        const message = `token id ${String(given[i])} at position ${i} is not an integer in [0, ${limit})`
        throw new SparseGptError('INVALID_OPTION', message)
      }
    })
  }

  /** How many windows of `sequence` tokens to run at once: enough to fill the machine, few enough to stay in memory. */
  windowsPerBatch(sequence: number): number {
    const elements = 2 ** 23 // of the widest activation: 32 MiB in float32
    const tokens = Math.min(4096, Math.floor(elements / this.architecture.widestActivation))
    return Math.max(1, Math.floor(tokens / sequence))
  }

  /** The embedded windows; all of one length. */
  embed(batches: readonly (readonly Int32Array[])[], offload?: Offload): Batch[] {
    const embedBatch = (windows: readonly Int32Array[]) => {
      const sequence = windows[0]?.length ?? 0
      const ids = new Int32Array(windows.length * sequence)
      windows.forEach((window, i) => ids.set(window, i * sequence))
      const hidden = this.device.tidy(() => {
        const uploaded = this.device.upload(ids, [ids.length])
        return this.architecture.embed(this.weights, this.device, uploaded, sequence)
      })
      offload?.(hidden)
      return { sequence, hidden }
    }
    return this.weights.passing(() => batches.map(embedBatch))
  }

  /** A run of `batch` through a block. */
  runBlock(index: number, weights: BlockWeights, batch: Batch): BlockRun {
    const tables = this.rotaryTables(batch.sequence)
    const block = new Block(this.device, weights, index, batch.sequence, tables)
    return new BlockRun(this.device, block, this.architecture.forward(block, batch.hidden))
  }

  /**
   * The first `count` blocks in turn; each one's weights are disposed of when the next is asked for. A GPU loads a block while it
   * works on the one before; on the CPU, whose weights are mapped, that would only cost memory.
   */
  *blocks(count = this.architecture.blockCount): Generator<[index: number, weights: BlockWeights]> {
    const ahead = this.device.kind === 'cuda' ? 1 : 0
    const loaded: BlockWeights[] = []
    try {
      for (let index = 0; index < count; index++) {
        while (loaded.length <= ahead && index + loaded.length < count) {
          loaded.push(this.weights.block(this.architecture.block(index + loaded.length)))
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
  async paced<T>(items: readonly T[], enqueue: (item: T) => void | Promise<void>, step?: () => void): Promise<void> {
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

  /** From now on the weights are those of `checkpoint`. */
  reopen(checkpoint: Checkpoint): void {
    this.currentCheckpoint = checkpoint
    this.weights.reopen(checkpoint)
  }

  private rotaryTables(sequence: number): RotaryTables | undefined {
    const { rotary } = this.architecture
    if (!rotary) return undefined
    let tables = this.rotary.get(sequence)
    if (!tables) {
      const { cosine, sine, shape } = rotaryAngles(rotary, sequence)
      tables = this.device.within([], () => ({
        cosine: this.device.upload(cosine, shape),
        sine: this.device.upload(sine, shape),
      }))
      this.rotary.set(sequence, tables)
    }
    return tables
  }
}

/**
 * Loads a model from a folder in Hugging Face layout (config.json, safetensors or .bin weights, tokenizer.json), or from
 * the hub: 'org/name' or 'org/name@revision' is downloaded into the cache that Hugging Face's tools share, unless it is
 * there already. HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_HUB_CACHE hold as for those tools. Weights are
 * mapped, not read.
 *
 * Throws FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_CHECKPOINT (damaged or contradictory files), UNSUPPORTED_MODEL,
 * INVALID_OPTION, WRITE_FAILED (the cache), ABORTED, DEVICE_UNAVAILABLE.
 */
export function loadModel(pathOrHubId: string, options: LoadOptions = {}): Promise<Model> {
  return Model.load(pathOrHubId, options)
}
