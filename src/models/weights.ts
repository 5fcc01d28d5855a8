import type { Checkpoint } from '../checkpoint/checkpoint.js'
import { storedBytes, type StoredTensor } from '../checkpoint/safetensors.js'
import { gather } from '../checkpoint/strided.js'
import { SparseGptError } from '../errors.js'
import type { DType, FileHandle } from '../native/addon.js'
import type { Device, Tensor } from '../native/device.js'
import type { BlockSpec, LinearSpec } from './architecture.js'

const dtypes: Partial<Record<string, DType>> = { F32: 'float32', BF16: 'bfloat16', F16: 'float16' }

/** A block's parameters on the device, by name below the block's prefix. Matrices are [out, in] in the compute type. */
export class BlockWeights {
  private readonly tensors = new Map<string, Tensor>()

  constructor(
    private readonly device: Device,
    readonly spec: BlockSpec,
    readonly linears: ReadonlyMap<string, LinearSpec>,
    /** Stored tensors whose pages are given back with the block. */
    private readonly read: readonly Tensor[] = [],
  ) {}

  get(name: string): Tensor {
    const tensor = this.tensors.get(name)
    if (!tensor) throw new SparseGptError('INTERNAL', `the block ${this.spec.prefix} has no weight ${name}`)
    return tensor
  }

  find(name: string): Tensor | undefined {
    return this.tensors.get(name)
  }

  set(name: string, tensor: Tensor): void {
    this.tensors.get(name)?.dispose()
    this.tensors.set(name, tensor)
  }

  dispose(): void {
    for (const tensor of this.tensors.values()) tensor.dispose()
    giveBack(this.device, this.read)
  }
}

function giveBack(device: Device, read: readonly Tensor[]): void {
  for (const tensor of read) {
    device.releasePages(tensor)
    tensor.dispose()
  }
}

/** The weights of a checkpoint as device tensors: mapped from the files, or replaced by pruned ones. */
export class Weights {
  private readonly files = new Map<string, FileHandle>()
  private readonly replaced = new Map<string, Tensor>()
  private readonly parameters = new Map<string, Tensor>()
  private read: Tensor[] | undefined

  constructor(
    private readonly device: Device,
    private checkpoint: Checkpoint,
    /** The element type of activations and of the matrices they are multiplied with. */
    readonly dtype: 'float32' | 'bfloat16',
  ) {}

  has(name: string): boolean {
    return this.checkpoint.tensors.has(name)
  }

  /** The first of `prefixes` under which the checkpoint has `name`; the first one when it has none. */
  findPrefix(prefixes: readonly [string, ...string[]], name: string): string {
    return prefixes.find((prefix) => this.has(prefix + name)) ?? prefixes[0]
  }

  /** Throws INVALID_CHECKPOINT unless the checkpoint has the tensor with this shape. */
  require(name: string, shape: readonly number[]): StoredTensor {
    const stored = this.checkpoint.tensors.get(name) ?? this.tiedHead(name)
    if (!stored) {
      throw new SparseGptError('INVALID_CHECKPOINT', `${this.checkpoint.folder}: the tensor ${name} is missing`)
    }
    if (stored.shape.length !== shape.length || stored.shape.some((size, i) => size !== shape[i])) {
      const message = `${stored.file}: the tensor ${name} is [${stored.shape.join(', ')}], but config.json implies [${shape.join(', ')}]`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    return stored
  }

  /** An embedding that is tied to the head may be stored under the head's name only. */
  private tiedHead(name: string): StoredTensor | undefined {
    const isEmbedding = /(^|\.)(embed_tokens|embed_in|wte|word_embeddings)\.weight$/.test(name)
    if (!isEmbedding || this.checkpoint.config.tie_word_embeddings === false) return undefined
    return this.checkpoint.tensors.get('lm_head.weight')
  }

  /** The tensor as stored: float32, bfloat16 or float16. */
  stored(name: string, shape: readonly number[]): Tensor {
    const info = this.require(name, shape)
    const replaced = this.replaced.get(name)
    // A handle of its own, since callers dispose of what they get.
    if (replaced) return replaced.reshape(shape)
    const dtype = dtypes[info.dtype]
    if (!dtype) {
      const message = `${info.file}: the tensor ${name} has dtype ${info.dtype}; supported are F32, BF16 and F16`
      throw new SparseGptError('UNSUPPORTED_MODEL', message)
    }
    // What cannot be mapped is read: elements that lie apart, or across the borders that the processor expects.
    if (info.strides || info.offset % storedBytes[info.dtype] !== 0) {
      return this.device.within([], () => this.device.upload(gather(info), shape, dtype))
    }
    let file = this.files.get(info.file)
    if (!file) {
      file = this.device.mapFile(info.file)
      this.files.set(info.file, file)
    }
    const tensor = this.device.mapTensor(file, info.offset, dtype, shape)
    this.read?.push(tensor)
    return tensor
  }

  /** Gives the pages of all tensors that `body` gets from stored() back once what it enqueues has run. */
  passing<T>(body: () => T): T {
    const read: Tensor[] = []
    try {
      return this.recording(read, body)
    } finally {
      giveBack(this.device, read)
    }
  }

  /** Puts all mapped tensors that `body` gets from stored() into `read`. */
  private recording<T>(read: Tensor[], body: () => T): T {
    this.read = read
    try {
      return body()
    } finally {
      this.read = undefined
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

  /** The matrix of a linear layer, [out, in] in the compute type, from its stored form; may share its memory on the CPU. */
  matrix(stored: Tensor, linear: LinearSpec): Tensor {
    return this.shares(stored, linear) ? stored.rowRange(0, stored.rows) : this.copy(stored, linear, this.dtype)
  }

  /** Whether `matrix` shares the memory of the stored form. */
  shares(stored: Tensor, linear: LinearSpec): boolean {
    return this.device.kind === 'cpu' && stored.dtype === this.dtype && linear.layout !== 'in-out'
  }

  /** As `matrix`, in memory of its own, or that of `out`. */
  copy(stored: Tensor, linear: LinearSpec, dtype: DType, out?: Tensor): Tensor {
    return linear.layout === 'in-out'
      ? this.device.transpose(stored, dtype, out)
      : this.device.cast(stored, dtype, out)
  }

  /** Whether the matrix of a block has every value of its stored form, in `dtype`: then the file need not be read again. */
  isExact(stored: Tensor): boolean {
    return this.dtype === 'float32' || this.dtype === stored.dtype
  }

  /** The stored form of a matrix [out, in], in the element type of the checkpoint; shares its memory where they are the same. */
  toStored(matrix: Tensor, linear: LinearSpec, dtype: DType): Tensor {
    if (linear.layout === 'in-out') return this.device.transpose(matrix, dtype)
    return matrix.dtype === dtype ? matrix.rowRange(0, matrix.rows) : this.device.cast(matrix, dtype)
  }

  storedLinear(spec: BlockSpec, linear: LinearSpec): Tensor {
    return this.stored(`${spec.prefix}${linear.name}.weight`, storedShape(linear))
  }

  requireLinear(spec: BlockSpec, linear: LinearSpec): StoredTensor {
    return this.require(`${spec.prefix}${linear.name}.weight`, storedShape(linear))
  }

  /** Loads a block; the caller disposes of it. */
  block(spec: BlockSpec): BlockWeights {
    const read: Tensor[] = []
    const linears = new Map(spec.linears.map((linear) => [linear.name, linear]))
    const block = new BlockWeights(this.device, spec, linears, read)
    const load = () => {
      for (const linear of spec.linears) {
        const stored = this.storedLinear(spec, linear)
        block.set(`${linear.name}.weight`, this.matrix(stored, linear))
        // A mapped matrix of which a converted copy was made need not stay in memory beside it.
        if (!this.shares(stored, linear)) this.device.releasePages(stored)
        if (!linear.bias) continue
        const bias = this.stored(`${spec.prefix}${linear.name}.bias`, [linear.rows])
        block.set(`${linear.name}.bias`, this.device.cast(bias, 'float32'))
      }
      for (const { name, shape, offset } of spec.parameters) {
        block.set(name, this.float32(spec.prefix + name, shape, offset))
      }
    }
    this.recording(read, () => this.device.within([], load))
    return block
  }

  private float32(name: string, shape: readonly number[], offset = 0): Tensor {
    const tensor = this.device.cast(this.stored(name, shape), 'float32')
    if (offset !== 0) {
      const constant = this.device.upload(new Float32Array(tensor.rows * tensor.width).fill(offset), shape)
      this.device.add(tensor, constant)
      constant.dispose()
    }
    return tensor
  }

  /** From now on `name` is `tensor`, in its stored form; the weights own it. */
  replace(name: string, tensor: Tensor): void {
    this.replaced.get(name)?.dispose()
    this.replaced.set(name, tensor)
  }

  /** From now on all weights come from `checkpoint`, which has the same tensors. */
  reopen(checkpoint: Checkpoint): void {
    this.checkpoint = checkpoint
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

export function storedShape({ rows, columns, layout }: LinearSpec): number[] {
  return layout === 'in-out' ? [columns, rows] : [rows, columns]
}
