import { SparseGptError, type ErrorCode } from '../errors.js'
import {
  nativeAddon,
  type Activation,
  type Addon,
  type DeviceHandle,
  type DType,
  type FileHandle,
  type HostArray,
  type SpillFileHandle,
  type TensorHandle,
} from './addon.js'

export type { Activation, DType } from './addon.js'

/** Causal self-attention; see AttentionShape in native/core/backend.h. */
export interface AttentionShape {
  /** Tokens of each of the independent sequences that lie one after another. */
  sequence: number
  heads: number
  /** Divides `heads`: query head h reads key/value head h / (heads / kvHeads). */
  kvHeads: number
  headDim: number
  /** Of the scores q · k. */
  scale: number
  /** A query sees its latest `window` keys only, its own among them. Default: all before it. */
  window?: number | undefined
  /** A scaled score s becomes softcap · tanh(s / softcap). */
  softcap?: number | undefined
  /** ALiBi, float32 [heads]: slope · (key position - query position) is added to the score. */
  slopes?: Tensor | undefined
}

/** Which weights a pruning operation removes: those of the mask; else n of every m; else trunc(count · sparsity). */
export interface Selection {
  sparsity?: number
  pattern?: { n: number; m: number }
  /** uint8 [rows, columns], 1 = prune. */
  mask?: Tensor
}

/**
 * A tensor in device memory or in a mapped file. It owns native memory: dispose of it (`dispose()`, `using`, or the scope it
 * was made in); a finalizer is the safety net. Operations already enqueued keep what they need.
 */
export class Tensor {
  constructor(
    readonly handle: TensorHandle,
    readonly dtype: DType,
    /** Row-major; a vector has one dimension, everything else two. */
    readonly shape: readonly number[],
    private readonly addon: Addon,
  ) {}

  /** Columns [first, first + count) of every row; shares the memory. */
  columns(first: number, count: number): Tensor {
    const handle = this.addon.view(this.handle, 0, this.rows, first, count)
    return new Tensor(handle, this.dtype, [this.rows, count], this.addon)
  }

  /** Rows [first, first + count); shares the memory. */
  rowRange(first: number, count: number): Tensor {
    const handle = this.addon.view(this.handle, first, count, 0, this.width)
    return new Tensor(handle, this.dtype, [count, this.width], this.addon)
  }

  /** The elements in another shape; shares the memory. Of tensors whose rows lie one after another (not of `columns()`). */
  reshape(shape: readonly number[]): Tensor {
    const [rows, columns] = matrixShape(shape)
    const handle = native(() => this.addon.reshape(this.handle, rows, columns))
    return new Tensor(handle, this.dtype, shape, this.addon)
  }

  get rows(): number {
    return matrixShape(this.shape)[0]
  }

  get width(): number {
    return matrixShape(this.shape)[1]
  }

  dispose(): void {
    this.addon.release(this.handle)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/**
 * A device with its queue. Operations return at once and run in order on native threads; `synchronize` and `read` wait and
 * report the first failure since the last wait. Operations that make a tensor put it into the innermost open scope.
 *
 * Operands and meanings are those of `Backend` in native/core/backend.h.
 */
export class Device {
  readonly kind: 'cpu' | 'cuda'
  private readonly handle: DeviceHandle
  private scope: Tensor[] | undefined

  /**
   * kind: 'cpu', 'cuda', or 'auto' for CUDA where it is available, else the CPU. threads: of the CPU, 0 for one per core.
   * Throws DEVICE_UNAVAILABLE.
   */
  constructor(
    kind: DeviceKind = 'cpu',
    threads = 0,
    /** What carries the operations out. */
    private readonly addon: Addon = nativeAddon(),
  ) {
    this.kind = kind === 'auto' ? (this.addon.probeCudaDevice().reason ? 'cpu' : 'cuda') : kind
    this.handle = native(() => (this.kind === 'cuda' ? openCuda(this.addon) : this.addon.openDevice(threads)))
  }

  /** For people: instruction set, threads; or the GPU. */
  get description(): string {
    return this.addon.describeDevice(this.handle)
  }

  /** Of a GPU, in bytes; undefined for the CPU. */
  get memory(): number | undefined {
    return this.kind === 'cuda' ? this.addon.probeCudaDevice().memory : undefined
  }

  /**
   * Seconds that the device spent since the last call, by operation; waits for the queue as `synchronize` does. The first call
   * starts the measuring: from then on a GPU finishes each operation before the next begins.
   */
  async profile(): Promise<Record<string, number>> {
    await this.synchronize()
    return this.addon.profile(this.handle)
  }

  /** Waits until everything enqueued so far has run; rejects with the first failure as SparseGptError. */
  async synchronize(): Promise<void> {
    await awaitNative(this.addon.synchronize(this.handle))
  }

  /** Waits for the queue and frees the device. Failures of what was still queued are not reported. */
  async close(): Promise<void> {
    await this.synchronize().catch(() => undefined)
    this.addon.closeDevice(this.handle)
  }

  /** Disposes of every tensor made while `body` runs, except the returned one(s). */
  tidy<T extends Tensor | Tensor[] | undefined>(body: () => T): T {
    const outer = this.scope
    const mine: Tensor[] = []
    this.scope = mine
    try {
      const result = body()
      const kept = new Set<Tensor>(result === undefined ? [] : Array.isArray(result) ? result : [result])
      for (const tensor of mine) if (!kept.has(tensor)) tensor.dispose()
      if (outer) outer.push(...kept)
      return result
    } catch (error) {
      for (const tensor of mine) tensor.dispose()
      throw error
    } finally {
      this.scope = outer
    }
  }

  /** Runs `body` with `tensors` as the scope; the caller disposes of them. For work that is interrupted and resumed. */
  within<T>(tensors: Tensor[], body: () => T): T {
    const outer = this.scope
    this.scope = tensors
    try {
      return body()
    } finally {
      this.scope = outer
    }
  }

  // --- tensors ---

  /** Uninitialised. */
  empty(dtype: DType, shape: readonly number[]): Tensor {
    const [rows, columns] = matrixShape(shape)
    const tensor = new Tensor(
      this.addon.allocate(this.handle, dtype, rows, columns),
      dtype,
      shape,
      this.addon,
    )
    this.scope?.push(tensor)
    return tensor
  }

  zeros(dtype: 'float32' | 'float64', shape: readonly number[]): Tensor {
    const tensor = this.empty(dtype, shape)
    this.addon.fill(this.handle, tensor.handle, 0)
    return tensor
  }

  mapFile(path: string): FileHandle {
    return native(() => this.addon.mapFile(path))
  }

  /** A tensor whose elements lie in a mapped file, `offset` bytes from its start. Throws INVALID_CHECKPOINT. */
  mapTensor(file: FileHandle, offset: number, dtype: DType, shape: readonly number[]): Tensor {
    const [rows, columns] = matrixShape(shape)
    const handle = native(() => this.addon.mapTensor(file, offset, dtype, rows, columns))
    return new Tensor(handle, dtype, shape, this.addon)
  }

  /** Copies on the queue: `array` must not change before the next synchronisation. */
  upload(array: Float32Array | Int32Array | Uint8Array, shape: readonly number[], as?: DType): Tensor {
    const own = array instanceof Float32Array ? 'float32' : array instanceof Int32Array ? 'int32' : 'uint8'
    const dtype = as ?? own
    const tensor = this.empty(dtype, shape)
    this.addon.upload(this.handle, tensor.handle, array)
    return tensor
  }

  /** The tensor's elements; float32, float64, int32 and uint8 tensors only. Waits for the queue. */
  async read(tensor: Tensor): Promise<HostArray> {
    const size = tensor.shape.reduce((a, b) => a * b, 1)
    const array = allocateHost(tensor.dtype, size)
    await awaitNative(this.addon.download(this.handle, tensor.handle, array))
    return array
  }

  async readFloat32(tensor: Tensor): Promise<Float32Array> {
    return (await this.read(tensor)) as Float32Array
  }

  cast(input: Tensor, dtype: DType, out = this.empty(dtype, input.shape)): Tensor {
    this.addon.cast(this.handle, out.handle, input.handle)
    return out
  }

  /** The tensor in memory that the device computes in: a copy of a mapped one on a GPU, else itself. */
  resident(tensor: Tensor): Tensor {
    return this.kind === 'cuda' ? this.cast(tensor, tensor.dtype) : tensor
  }

  transpose(input: Tensor, dtype: DType, out = this.empty(dtype, [input.width, input.rows])): Tensor {
    this.addon.transpose(this.handle, out.handle, input.handle)
    return out
  }

  /** Gives a mapped tensor's pages back to the system once what is enqueued so far has run. */
  releasePages(tensor: Tensor): void {
    this.addon.releasePages(this.handle, tensor.handle)
  }

  /** A nameless file in an existing folder for `offload`. Throws WRITE_FAILED. */
  createSpillFile(folder: string): SpillFileHandle {
    return native(() => this.addon.createSpillFile(folder))
  }

  /**
   * Moves the storage of the tensor and of its views out of the device's memory until one of them is used again: to `file`, or
   * without one from a GPU to the host's memory. A failure (WRITE_FAILED) shows at the next synchronisation.
   */
  offload(tensor: Tensor, file?: SpillFileHandle): void {
    this.addon.offload(this.handle, tensor.handle, file)
  }

  /** Writes the tensor's bytes to an open file; a failure (WRITE_FAILED) shows at the next synchronisation. */
  writeFile(fd: number, position: number, tensor: Tensor): void {
    this.addon.writeFile(this.handle, fd, position, tensor.handle)
  }

  // --- forward ---

  /** [tokens, columns of table]: the rows of `table` that `ids` names. */
  embedding(table: Tensor, ids: Tensor, dtype: DType): Tensor {
    const out = this.empty(dtype, [ids.width, table.width])
    this.addon.embedding(this.handle, out.handle, table.handle, ids.handle)
    return out
  }

  /** x Wᵀ + b: x [tokens, in], weight [out, in], bias [out]. */
  linear(x: Tensor, weight: Tensor, bias?: Tensor, dtype: DType = x.dtype): Tensor {
    const out = this.empty(dtype, [x.rows, weight.rows])
    this.addon.linear(this.handle, out.handle, x.handle, weight.handle, bias?.handle)
    return out
  }

  /** `out` may be x. */
  layerNorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: number,
    out = this.empty(x.dtype, x.shape),
  ): Tensor {
    this.addon.layerNorm(this.handle, out.handle, x.handle, weight.handle, bias.handle, epsilon)
    return out
  }

  /** `out` may be x. */
  rmsNorm(x: Tensor, weight: Tensor, epsilon: number, out = this.empty(x.dtype, x.shape)): Tensor {
    this.addon.rmsNorm(this.handle, out.handle, x.handle, weight.handle, epsilon)
    return out
  }

  /** In place. cosine, sine: float32 [sequence, pairs]; pairs are (i, i + pairs), or (2i, 2i + 1) when interleaved. */
  rotary(x: Tensor, cosine: Tensor, sine: Tensor, headDim: number, interleaved = false): void {
    this.addon.rotary(this.handle, x.handle, cosine.handle, sine.handle, headDim, interleaved)
  }

  /** Causal self-attention: q [tokens, heads · headDim], k and v [tokens, kvHeads · headDim]. */
  attention(q: Tensor, k: Tensor, v: Tensor, shape: AttentionShape): Tensor {
    const out = this.empty(q.dtype, [q.rows, q.width])
    this.addon.attention(this.handle, out.handle, q.handle, k.handle, v.handle, {
      ...shape,
      window: shape.window ?? 0,
      softcap: shape.softcap ?? 0,
      slopes: shape.slopes?.handle,
    })
    return out
  }

  /** x = f(x). */
  activation(x: Tensor, kind: Activation): void {
    this.addon.activation(this.handle, x.handle, kind)
  }

  /** x = f(x) · up. */
  gate(x: Tensor, up: Tensor, kind: Activation): void {
    this.addon.gate(this.handle, x.handle, up.handle, kind)
  }

  /** x += y. */
  add(x: Tensor, y: Tensor): void {
    this.addon.add(this.handle, x.handle, y.handle)
  }

  /** x *= factor. */
  scale(x: Tensor, factor: number): void {
    this.addon.scale(this.handle, x.handle, factor)
  }

  /** x = cap · tanh(x / cap). */
  softcap(x: Tensor, cap: number): void {
    this.addon.softcap(this.handle, x.handle, cap)
  }

  /**
   * One part of a fused projection, [tokens, groups · count]: columns [g · stride + first, g · stride + first + count) of x
   * for each group g.
   */
  takeColumns(x: Tensor, part: { groups: number; first: number; count: number; stride: number }): Tensor {
    const out = this.empty(x.dtype, [x.rows, part.groups * part.count])
    this.addon.takeColumns(this.handle, out.handle, x.handle, part.first, part.count, part.stride)
    return out
  }

  /** out[ids[t]] += factors[t] · x[t]; no id occurs twice. ids int32, factors float32, [rows of x]. */
  scatterAdd(out: Tensor, x: Tensor, ids: Tensor, factors: Tensor): void {
    this.addon.scatterAdd(this.handle, out.handle, x.handle, ids.handle, factors.handle)
  }

  /**
   * float32 [tokens]: the loss of predicting targets[t] from x[t]. The logits are those of `head`, [vocabulary, columns of x],
   * and its bias, [vocabulary], then capped as softcap() does.
   */
  crossEntropy(
    x: Tensor,
    head: Tensor,
    targets: Tensor,
    { bias, softcap = 0 }: { bias?: Tensor | undefined; softcap?: number | undefined } = {},
  ): Tensor {
    const losses = this.empty('float32', [x.rows])
    const [device, out] = [this.handle, losses.handle]
    this.addon.crossEntropy(device, out, x.handle, head.handle, bias?.handle, softcap, targets.handle)
    return losses
  }

  // --- calibration ---

  /** gram += scale · xᵀ x (upper triangle). */
  accumulateGram(gram: Tensor, x: Tensor, scale: number): void {
    this.addon.accumulateGram(this.handle, gram.handle, x.handle, scale)
  }

  /** sums += scale · Σ_t x[t]². */
  accumulateSquares(sums: Tensor, x: Tensor, scale: number): void {
    this.addon.accumulateSquares(this.handle, sums.handle, x.handle, scale)
  }

  // --- pruning ---

  /** Factors the Hessian in place. */
  factorHessian(hessian: Tensor, dampening: number): Factor {
    const dead = this.empty('uint8', [hessian.width])
    const stats = this.empty('float64', [4])
    this.addon.factorHessian(this.handle, hessian.handle, dead.handle, dampening, stats.handle)
    return { matrix: hessian, dead, stats }
  }

  pruneSparsegpt(
    weight: Tensor,
    factor: Factor,
    selection: Selection,
    options: { blockSize: number; bits: number },
  ): Pruned {
    const { mask, stats } = this.pruned(weight)
    this.addon.pruneSparsegpt(
      this.handle,
      weight.handle,
      mask.handle,
      factor.matrix.handle,
      factor.dead.handle,
      selectionArguments(selection),
      options.blockSize,
      options.bits,
      stats.handle,
    )
    return { mask, stats }
  }

  pruneMagnitude(weight: Tensor, selection: Selection): Pruned {
    const { mask, stats } = this.pruned(weight)
    const arguments_ = selectionArguments(selection)
    this.addon.pruneMagnitude(this.handle, weight.handle, mask.handle, arguments_, stats.handle)
    return { mask, stats }
  }

  /** squares: float32 [columns], Σ x² of each input. */
  pruneWanda(weight: Tensor, squares: Tensor, selection: Selection): Pruned {
    const { mask, stats } = this.pruned(weight)
    const arguments_ = selectionArguments(selection)
    this.addon.pruneWanda(this.handle, weight.handle, mask.handle, squares.handle, arguments_, stats.handle)
    return { mask, stats }
  }

  // --- inspection ---

  /** float64 [1 + patterns]: zeros, then 1 for each pattern [n, m] that every group of m neighbours keeps. */
  countZeros(tensor: Tensor, patterns: readonly (readonly [number, number])[]): Tensor {
    const stats = this.empty('float64', [1 + patterns.length])
    const uploaded = this.upload(Int32Array.from(patterns.flat()), [patterns.length, 2])
    this.addon.countZeros(this.handle, stats.handle, tensor.handle, uploaded.handle)
    return stats
  }

  private pruned(weight: Tensor): Pruned {
    return { mask: this.empty('uint8', [weight.rows, weight.width]), stats: this.empty('float64', [3]) }
  }
}

export type DeviceKind = 'auto' | 'cpu' | 'cuda'

/** What `devices()` says of a device. memory is in bytes. */
export type DeviceInfo =
  | { kind: 'cpu'; available: true; name: string }
  | { kind: 'cuda'; available: true; name: string; memory: number }
  | { kind: 'cuda'; available: false; reason: string }

/**
 * The devices that `device` options can name: the CPU, and the first CUDA GPU or the reason why there is none (the CUDA
 * backend is not built, the driver is missing, there is no GPU). Throws DEVICE_UNAVAILABLE when the native addon is missing.
 */
export function devices(): DeviceInfo[] {
  const addon = nativeAddon()
  const cpu = native(() => addon.openDevice(0))
  const name = addon.describeDevice(cpu)
  addon.closeDevice(cpu)
  const { reason, ...cuda } = addon.probeCudaDevice()
  return [
    { kind: 'cpu', available: true, name },
    reason ? { kind: 'cuda', available: false, reason } : { kind: 'cuda', available: true, ...cuda },
  ]
}

function openCuda(addon: Addon): DeviceHandle {
  try {
    return native(() => addon.openCudaDevice())
  } catch (error) {
    if (!(error instanceof SparseGptError) || error.code !== 'DEVICE_UNAVAILABLE') throw error
    const message = `device "cuda" is not available: ${error.message}. Use device "cpu", or "auto" to fall back to it`
    throw new SparseGptError('DEVICE_UNAVAILABLE', message, { cause: error })
  }
}

/** R of H = R Rᵀ, what it cost, and which columns are dead. */
export interface Factor {
  matrix: Tensor
  dead: Tensor
  /** float64: dampening used, retries, dead columns, seconds. */
  stats: Tensor
}

export interface Pruned {
  /** uint8 [rows, columns], 1 = pruned. */
  mask: Tensor
  /** float64: loss (NaN where the method has none), zeros, seconds. */
  stats: Tensor
}

function selectionArguments(selection: Selection) {
  return {
    sparsity: selection.sparsity ?? 0,
    n: selection.pattern?.n ?? 0,
    m: selection.pattern?.m ?? 0,
    mask: selection.mask?.handle,
  }
}

/** As the addon has it: rows and columns. */
function matrixShape(shape: readonly number[]): [rows: number, columns: number] {
  return [shape.slice(0, -1).reduce((a, b) => a * b, 1), shape[shape.length - 1] ?? 1]
}

function allocateHost(dtype: DType, size: number): HostArray {
  switch (dtype) {
    case 'float32':
      return new Float32Array(size)
    case 'float64':
      return new Float64Array(size)
    case 'int32':
      return new Int32Array(size)
    case 'uint8':
      return new Uint8Array(size)
    default:
      return new Uint16Array(size)
  }
}

/** Errors of the addon carry a code; give them the package's class. */
function asSparseGptError(error: unknown): unknown {
  if (typeof error === 'object' && error !== null && 'code' in error && 'message' in error) {
    return new SparseGptError(error.code as ErrorCode, String(error.message), { cause: error })
  }
  return error
}

export function native<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw asSparseGptError(error)
  }
}

async function awaitNative(promise: Promise<void>): Promise<void> {
  try {
    await promise
  } catch (error) {
    throw asSparseGptError(error)
  }
}
