import type { Checkpoint } from '../files/checkpoint.js'
import { expandScaled } from '../files/block-scaled.js'
import { unpackDown } from '../files/pack-quantized.js'
import type { CodedMatrix, PackedParts, StoredTensor } from '../files/safetensors.js'
import { gather } from '../files/strided.js'
import { SparseGptError } from '../errors.js'
import type { DType, FileHandle } from '../native/addon.js'
import type { Device, Tensor } from '../native/device.js'
import { elementBytes } from '../native/tensor.js'
import { languageConfig, nestedPrefixes } from './language-config.js'
import { missingTensor } from './missing-tensor.js'

const dtypes: Partial<Record<string, DType>> = { F32: 'float32', BF16: 'bfloat16', F16: 'float16' }

/** The size from which on the CPU's memory pool keeps buffers (native/cpu/memory_pool.h), in bytes: smaller ones cost page faults. */
const smallestPooled = 2 ** 21

/** A matrix of codes on a device. */
export interface CodedTensors {
  codes: Tensor
  scale: Tensor
  zeroPoints: Tensor
  bits: number
  groupSize: number
}

/** The weights of a checkpoint as device tensors: mapped from the files, unpacked, or replaced by pruned ones. */
export class Weights {
  private readonly files = new Map<string, FileHandle>()
  private readonly replaced = new Map<string, Tensor>()
  private pruned: ReadonlyMap<string, StoredTensor> = new Map()
  private readonly parameters = new Map<string, Tensor>()
  private read: Tensor[] | undefined
  protected held: Map<string, Tensor> | undefined
  private changes = 0

  constructor(
    protected readonly device: Device,
    private checkpoint: Checkpoint,
    /** The element type of activations and of the matrices they are multiplied with. */
    readonly dtype: 'float32' | 'bfloat16',
  ) {}

  /** What config.json says of the language model. */
  get config(): Record<string, unknown> {
    return languageConfig(this.checkpoint.config)
  }

  /** Whether the language model is a part of a multimodal one. */
  get isPart(): boolean {
    return this.config !== this.checkpoint.config
  }

  has(name: string): boolean {
    return this.checkpoint.tensors.has(name)
  }

  /**
   * The first of `prefixes` under which the checkpoint has `name`, or of those that they become in a multimodal model; the first one
   * when it has none.
   */
  findPrefix(prefixes: readonly [string, ...string[]], name: string): string {
    const all = this.isPart ? [...prefixes.flatMap(nestedPrefixes), ...prefixes] : prefixes
    return all.find((prefix) => this.has(prefix + name)) ?? prefixes[0]
  }

  /**
   * What the checkpoint says of a tensor. Throws INVALID_CHECKPOINT unless it has the tensor with this shape, UNSUPPORTED_MODEL for
   * an element type that is not computed with, and for names of quantized weights or an adapter.
   */
  require(name: string, shape: readonly number[]): StoredTensor {
    const stored = this.pruned.get(name) ?? this.checkpoint.tensors.get(name) ?? this.tiedHead(name)
    if (!stored) throw missingTensor(this.checkpoint.folder, name, this.checkpoint.tensors.keys())
    if (stored.shape.length !== shape.length || stored.shape.some((size, i) => size !== shape[i])) {
      const message = `${stored.file}: the tensor ${name} is [${stored.shape.join(', ')}], but config.json implies [${shape.join(', ')}]`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    if (!dtypes[stored.dtype]) {
      const message = `${stored.file}: the tensor ${name} has dtype ${stored.dtype}; supported are F32, BF16 and F16`
      throw new SparseGptError('UNSUPPORTED_MODEL', message)
    }
    return stored
  }

  /** An embedding that config.json ties to the head may be stored under the head's name only. */
  private tiedHead(name: string): StoredTensor | undefined {
    const isEmbedding = /(^|\.)(embed_tokens|embed_in|wte|word_embeddings)\.weight$/.test(name)
    if (!isEmbedding || this.config['tie_word_embeddings'] !== true) return undefined
    const { tensors } = this.checkpoint
    return tensors.get('lm_head.weight') ?? tensors.get('language_model.lm_head.weight')
  }

  /** The tensor as stored: float32, bfloat16 or float16. Throws INVALID_CHECKPOINT, UNSUPPORTED_MODEL. */
  stored(name: string, shape: readonly number[]): Tensor {
    const held = this.held?.get(name)
    if (held) return held
    const info = this.require(name, shape)
    const tensor = this.open(name, info, shape)
    this.read?.push(tensor)
    this.held?.set(name, tensor)
    return tensor
  }

  /**
   * The codes that a matrix is stored as: uint8 [rows, columns], with scales and zero points (uint8) [rows, groups]; undefined for one that is
   * stored otherwise. The caller disposes of the three. Throws INVALID_CHECKPOINT.
   */
  coded(name: string): CodedTensors | undefined {
    const info = this.pruned.get(name) ?? this.checkpoint.tensors.get(name) ?? this.tiedHead(name)
    if (!info?.codes || (!this.pruned.has(name) && this.replaced.has(name))) return undefined
    const { bits, groupSize } = info.codes
    const { device } = this
    const { codes, scale, zeroPoints } = this.codes(info, info.codes)
    const middle = () =>
      device.upload(new Uint8Array(scale.rows * scale.width).fill(1 << (bits - 1)), scale.shape)
    return { codes, scale, zeroPoints: zeroPoints ?? device.within([], middle), bits, groupSize }
  }

  private open(name: string, info: StoredTensor, shape: readonly number[]): Tensor {
    const replaced = this.pruned.has(name) ? undefined : this.replaced.get(name)
    // A handle of its own, since callers dispose of what they get.
    if (replaced) return replaced.reshape(shape)
    if (info.packed) return this.unpack(info, info.packed)
    const { scaled } = info
    if (scaled) {
      return this.device.within([], () =>
        this.device.upload(expandScaled({ ...info, scaled }), shape, 'bfloat16'),
      )
    }
    return info.codes ? this.decode(info, info.codes) : this.map(info, shape, dtypes[info.dtype]!)
  }

  /** A packed matrix of values in the device's memory. */
  private unpack({ file, name, shape, dtype }: StoredTensor, packed: PackedParts): Tensor {
    const { device } = this
    const values = this.map(packed.compressed, packed.compressed.shape, dtypes[dtype]!)
    const bitmask = this.map(packed.bitmask, packed.bitmask.shape, 'uint8')
    const offsets = this.map(packed.rowOffsets, [packed.rowOffsets.shape[0]!, 8], 'uint8')
    const subject = `${file}: the packed tensor ${JSON.stringify(name)}`
    const matrix = this.room(dtypes[dtype]!, shape)
    device.unpackValues({ values, bitmask, offsets }, matrix, subject)
    for (const part of [values, bitmask, offsets]) this.giveBack([part])
    return matrix
  }

  /** A matrix of codes in the device's memory. */
  private decode(info: StoredTensor, coded: CodedMatrix): Tensor {
    const { device } = this
    const dtype = dtypes[info.dtype]!
    const { codes, scale, zeroPoints } = this.codes(info, coded)
    const matrix = this.room(dtype, codes.shape)
    device.dequantizeCodes(codes, { scale, zeroPoints }, coded.bits, matrix)
    codes.dispose()
    this.giveBack([scale, ...(zeroPoints ? [zeroPoints] : [])])
    if (!coded.transposed) return matrix
    const stored = this.room(dtype, info.shape)
    device.transpose(matrix, dtype, stored)
    matrix.dispose()
    return stored
  }

  /** The codes of a matrix, uint8 [rows, columns], with their scales and zero points; the caller disposes of them. */
  private codes(
    { file, name, shape }: StoredTensor,
    { bits, transposed, parts }: CodedMatrix,
  ): { codes: Tensor; scale: Tensor; zeroPoints: Tensor | undefined } {
    const { device } = this
    const [rows, columns] = (transposed ? [...shape].reverse() : shape) as [number, number]
    const packed = this.map(
      parts.codes,
      parts.bitmask ? [parts.codes.bytes] : [rows, parts.codes.bytes / rows],
      'uint8',
    )
    const bitmask = parts.bitmask && this.map(parts.bitmask, parts.bitmask.shape, 'uint8')
    const offsets = parts.rowOffsets && this.map(parts.rowOffsets, [rows, 8], 'uint8')
    const scale = this.map(parts.scale, parts.scale.shape, dtypes[parts.scale.dtype]!)
    const zeroPoints = parts.zeroPoint && this.zeroPoints(parts.zeroPoint, scale.shape, bits)
    const codes = this.room('uint8', [rows, columns])
    const subject = `${file}: the packed tensor ${JSON.stringify(name)}`
    device.unpackCodes({ packed, bitmask, offsets, zeroPoints }, bits, codes, subject)
    this.giveBack([packed, bitmask, offsets].filter((part) => part !== undefined))
    return { codes, scale, zeroPoints }
  }

  /** Zero points, uint8 [rows, groups]. */
  private zeroPoints(part: StoredTensor, shape: readonly number[], bits: number): Tensor {
    if (part.dtype === 'U8') return this.map(part, shape, 'uint8')
    const [rows, groups] = shape as [number, number]
    // One for each row and group, which is little.
    const packed = new Int32Array(new Uint8Array(gather(part)).buffer)
    return this.device.within([], () => this.device.upload(unpackDown(packed, rows, groups, bits), shape))
  }

  /** Memory for a matrix, which comes and goes with every pass: at least as large as what the CPU's pool keeps for reuse. */
  private room(dtype: DType, shape: readonly number[]): Tensor {
    const { device } = this
    const [rows, columns] = shape as [number, number]
    const rowBytes = columns * elementBytes[dtype]
    const isSmall = device.traits.inHostMemory && rows * rowBytes >= smallestPooled / 8
    const least = isSmall ? Math.ceil(smallestPooled / rowBytes) : 0
    const room = device.within([], () => device.empty(dtype, [Math.max(rows, least), columns]))
    const matrix = room.rowRange(0, rows)
    room.dispose()
    return matrix
  }

  /** A tensor that lies in a file, in a shape of as many bytes. */
  private map(info: StoredTensor, shape: readonly number[], dtype: DType): Tensor {
    // What cannot be mapped is read: elements that lie apart, or across the borders that the processor expects.
    if (info.strides || info.offset % elementBytes[dtype] !== 0) {
      return this.device.within([], () => this.device.upload(gather(info), shape, dtype))
    }
    let file = this.files.get(info.file)
    if (!file) {
      file = this.device.mapFile(info.file)
      this.files.set(info.file, file)
    }
    return this.device.mapTensor(file, info.offset, dtype, shape)
  }

  /** Lets go of a tensor from stored(), of which what is enqueued so far makes all the use that there is. */
  drop(tensor: Tensor): void {
    const at = this.read?.indexOf(tensor) ?? -1
    if (at >= 0) this.read?.splice(at, 1)
    this.giveBack([tensor])
  }

  /** Gives the pages of all tensors that `body` gets from stored() back once what it enqueues has run. */
  passing<T>(body: () => T): T {
    const read: Tensor[] = []
    try {
      return this.recording(read, body)
    } finally {
      this.giveBack(read)
    }
  }

  /** Gives the pages of tensors from stored() back once what is enqueued so far has run, and disposes of them. */
  giveBack(read: readonly Tensor[]): void {
    for (const tensor of read) {
      this.device.releasePages(tensor)
      tensor.dispose()
    }
  }

  /** Puts all tensors that `body` gets from stored() into `read`; they are given back with giveBack(). */
  recording<T>(read: Tensor[], body: () => T): T {
    this.read = read
    try {
      return body()
    } finally {
      this.read = undefined
    }
  }

  /**
   * Opens every tensor that `body` gets from stored() once, and keeps it in `held` for the next time; they are given back with
   * giveBack().
   */
  holding<T>(held: Map<string, Tensor>, body: () => T): T {
    this.held = held
    try {
      return body()
    } finally {
      this.held = undefined
    }
  }

  /** A parameter outside the blocks (final norm, position table) in float32, kept for the life of the model. */
  parameter(name: string, shape: readonly number[], offset = 0): Tensor {
    let tensor = this.parameters.get(name)
    if (!tensor) {
      tensor = this.device.within([], () => this.float32(name, shape, offset))
      this.parameters.set(name, tensor)
    }
    return tensor
  }

  /** A parameter in float32. */
  float32(name: string, shape: readonly number[], offset = 0): Tensor {
    const tensor = this.device.cast(this.stored(name, shape), 'float32')
    this.shift(tensor, offset)
    return tensor
  }

  /** Adds a number to every element of a float32 tensor. */
  shift(tensor: Tensor, by: number): void {
    if (by === 0) return
    const constant = this.device.upload(new Float32Array(tensor.rows * tensor.width).fill(by), tensor.shape)
    this.device.add(tensor, constant)
    constant.dispose()
  }

  /** Puts `tensor`, in its stored form, in the place of the weight `name`; the weights own it. */
  replace(name: string, tensor: Tensor): void {
    this.replaced.get(name)?.dispose()
    this.replaced.set(name, tensor)
    this.changes++
  }

  /** The weights that replace() has put in the place of the checkpoint's, in their stored form; they stay the weights' own. */
  get replacements(): ReadonlyMap<string, Tensor> {
    return this.replaced
  }

  /** A number that differs whenever other weights are there than before. */
  get version(): number {
    return this.changes
  }

  /** Whether weights are in memory that differ from the checkpoint's. */
  get changed(): boolean {
    return this.replaced.size > 0
  }

  /** Takes the weights named as `tensors` from these, which have the same shapes, until the next call or reopen(). */
  readInstead(tensors: readonly StoredTensor[]): void {
    for (const { file } of this.pruned.values()) this.files.delete(file)
    this.pruned = new Map(tensors.map((tensor) => [tensor.name, tensor]))
    this.changes++
  }

  /** Runs `body`, until its promise settles, with weights as they were before readInstead(). */
  async ofSource<T>(body: () => T | Promise<T>): Promise<T> {
    const { pruned } = this
    this.pruned = new Map()
    try {
      return await body()
    } finally {
      this.pruned = pruned
    }
  }

  /** Takes all weights from `checkpoint` from then on, which has the same tensors, and those that were replaced as they are. */
  reopen(checkpoint: Checkpoint): void {
    this.checkpoint = checkpoint
    this.changes++
    this.pruned = new Map()
    this.files.clear()
    for (const tensor of this.replaced.values()) tensor.dispose()
    this.replaced.clear()
  }

  dispose(): void {
    for (const tensor of [...this.replaced.values(), ...this.parameters.values()]) tensor.dispose()
    this.replaced.clear()
    this.parameters.clear()
    this.files.clear()
  }
}
