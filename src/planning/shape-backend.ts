import type {
  Addon,
  AttentionArguments,
  DeviceHandle,
  DType,
  FileHandle,
  HostArray,
  SelectionArguments,
  SpillFileHandle,
  TensorHandle,
} from '../native/addon.js'

/** What memory is used for; the float32 copy of a matrix that is solved counts as weights, the solver's is the rest. */
export type MemoryPart = 'weights' | 'activations' | 'gram' | 'solver'

/** Kinds of arithmetic. */
export type Arithmetic = 'linear' | 'attention' | 'gram' | 'factor' | 'solve'

const elementBytes: Record<DType, number> = {
  float64: 8,
  float32: 4,
  int32: 4,
  bfloat16: 2,
  float16: 2,
  uint8: 1,
}

/** As native/core/pages.cpp rounds. */
const hugePage = 2 ** 21
const page = 4096
const rounded = (bytes: number) => {
  const unit = bytes >= hugePage ? hugePage : page
  return Math.max(1, Math.ceil(bytes / unit)) * unit
}

/** Bytes that tensors look at: memory that is taken when first used, or a file's pages. */
interface Storage {
  bytes: number
  kind: 'memory' | 'file'
  part: MemoryPart
  /** In memory now. */
  resident: number
  /** Whether the bytes are in a spill file. */
  spilled: boolean
  /** Tensors that share it. */
  users: number
}

interface ShapeTensor {
  storage: Storage
  dtype: DType
  rows: number
  columns: number
}

const bytesOf = ({ rows, columns, dtype }: ShapeTensor) => rows * columns * elementBytes[dtype]

/**
 * A device that knows shapes only: it runs no arithmetic but counts it, and the memory that the CPU backend would hold at every
 * moment. What runs on it goes through the same operations, in the same order, as on a real device.
 */
export class ShapeBackend implements Addon {
  /** Floating-point operations by kind; a multiply-add is two. */
  readonly flop: Record<Arithmetic, number> = { linear: 0, attention: 0, gram: 0, factor: 0, solve: 0 }
  /** The largest sum of all parts so far, and the parts at that moment, in bytes. */
  peak = { bytes: 0, parts: {} as Record<MemoryPart, number> }
  bytesRead = 0
  bytesWritten = 0
  /** To and from the spill file, and its size. */
  bytesOffloaded = 0
  spillFileBytes = 0
  private spilledBytes = 0
  private readonly now: Record<MemoryPart, number> = {
    weights: 0,
    activations: 0,
    gram: 0,
    solver: 0,
  }
  private random = 1

  /** `pagesCount`: whether mapped pages lie in the memory that is counted; not so on a GPU. */
  constructor(private readonly pagesCount: boolean) {}

  // --- memory ---

  private take(storage: Storage, bytes: number): void {
    storage.resident += bytes
    if (storage.kind === 'file' && !this.pagesCount) return
    this.now[storage.part] += bytes
    const total = Object.values(this.now).reduce((a, b) => a + b, 0)
    if (total > this.peak.bytes) this.peak = { bytes: total, parts: { ...this.now } }
  }

  private give(storage: Storage): void {
    if (storage.kind === 'memory' || this.pagesCount) this.now[storage.part] -= storage.resident
    storage.resident = 0
  }

  /** The tensor's bytes are read or written, `touched` of them if it is a file's. */
  private use(handle: TensorHandle, touched = Infinity): ShapeTensor {
    const tensor = handle as unknown as ShapeTensor
    const { storage } = tensor
    if (storage.kind === 'file') {
      const more = Math.min(touched, storage.bytes - storage.resident)
      this.bytesRead += more
      this.take(storage, more)
    } else if (storage.resident === 0) {
      if (storage.spilled) this.bytesOffloaded += storage.bytes
      this.unspill(storage)
      this.take(storage, rounded(storage.bytes))
    }
    return tensor
  }

  /** Uses the tensor as `part`. */
  private as(part: MemoryPart, handle: TensorHandle): ShapeTensor {
    const { storage } = handle as unknown as ShapeTensor
    if (storage.kind === 'memory') {
      this.now[storage.part] -= storage.resident
      this.now[part] += storage.resident
      storage.part = part
    }
    return this.use(handle)
  }

  /** Memory that an operation takes while it runs. */
  private during(bytes: number): void {
    const scratch: Storage = { bytes, kind: 'memory', part: 'solver', resident: 0, spilled: false, users: 1 }
    this.take(scratch, bytes)
    this.give(scratch)
  }

  private tensor(storage: Storage, dtype: DType, rows: number, columns: number): TensorHandle {
    storage.users++
    return { storage, dtype, rows, columns } satisfies ShapeTensor as unknown as TensorHandle
  }

  openDevice = () => ({}) as DeviceHandle
  openCudaDevice = () => ({}) as DeviceHandle
  probeCudaDevice = () => ({ name: '', memory: 0, reason: '' })
  closeDevice = () => undefined
  describeDevice = () => 'shapes only'
  cpuLevels = () => []
  cpuPeak = () => 0
  profile = () => ({})
  synchronize = () => Promise.resolve()

  allocate(_: DeviceHandle, dtype: DType, rows: number, columns: number): TensorHandle {
    const bytes = rows * columns * elementBytes[dtype]
    const part = 'activations'
    return this.tensor(
      { bytes, kind: 'memory', part, resident: 0, spilled: false, users: 0 },
      dtype,
      rows,
      columns,
    )
  }

  view(handle: TensorHandle, _row: number, rows: number, _column: number, columns: number): TensorHandle {
    const { storage, dtype } = handle as unknown as ShapeTensor
    return this.tensor(storage, dtype, rows, columns)
  }

  reshape(handle: TensorHandle, rows: number, columns: number): TensorHandle {
    const { storage, dtype } = handle as unknown as ShapeTensor
    return this.tensor(storage, dtype, rows, columns)
  }

  release(handle: TensorHandle): void {
    const tensor = handle as unknown as ShapeTensor & { released?: true }
    if (tensor.released) return
    tensor.released = true
    const { storage } = tensor
    if (--storage.users > 0 || storage.kind === 'file') return
    this.give(storage)
    this.unspill(storage)
  }

  private unspill(storage: Storage): void {
    if (storage.spilled) this.spilledBytes -= storage.bytes
    storage.spilled = false
  }

  /** Every tensor of a planned checkpoint is a file of its own, so a file is its storage. */
  mapFile(): FileHandle {
    const storage: Storage = {
      bytes: 0,
      kind: 'file',
      part: 'weights',
      resident: 0,
      spilled: false,
      users: 0,
    }
    return storage as unknown as FileHandle
  }

  mapTensor(file: FileHandle, _offset: number, dtype: DType, rows: number, columns: number): TensorHandle {
    const storage = file as unknown as Storage
    storage.bytes = rows * columns * elementBytes[dtype]
    return this.tensor(storage, dtype, rows, columns)
  }

  releasePages(_: DeviceHandle, handle: TensorHandle): void {
    const { storage } = handle as unknown as ShapeTensor
    if (storage.kind === 'file') this.give(storage)
  }

  createSpillFile = () => ({}) as SpillFileHandle

  offload(_: DeviceHandle, handle: TensorHandle): void {
    const { storage } = handle as unknown as ShapeTensor
    if (storage.kind === 'file' || storage.resident === 0) return
    this.give(storage)
    storage.spilled = true
    this.bytesOffloaded += storage.bytes
    this.spilledBytes += storage.bytes
    this.spillFileBytes = Math.max(this.spillFileBytes, this.spilledBytes)
  }

  upload(_: DeviceHandle, tensor: TensorHandle): void {
    this.use(tensor)
  }

  /** float32 elements are made up, different from each other: a router then spreads its tokens over all experts. */
  download(_: DeviceHandle, tensor: TensorHandle, array: HostArray): Promise<void> {
    this.use(tensor)
    if (array instanceof Float32Array) {
      for (let i = 0; i < array.length; i++) {
        this.random = (Math.imul(this.random, 1664525) + 1013904223) >>> 0
        array[i] = this.random / 2 ** 32
      }
    }
    return Promise.resolve()
  }

  writeFile(_: DeviceHandle, _fd: number, _position: number, tensor: TensorHandle): void {
    this.bytesWritten += bytesOf(this.use(tensor))
  }

  // --- moving and converting ---

  cast(_: DeviceHandle, out: TensorHandle, input: TensorHandle): void {
    const { storage } = this.use(input)
    this.as(storage.kind === 'file' ? 'weights' : storage.part, out)
  }

  transpose(device: DeviceHandle, out: TensorHandle, input: TensorHandle): void {
    this.cast(device, out, input)
  }

  fill(_: DeviceHandle, out: TensorHandle): void {
    this.use(out)
  }

  // --- forward ---

  embedding(_: DeviceHandle, out: TensorHandle, table: TensorHandle, ids: TensorHandle): void {
    const { columns, dtype } = table as unknown as ShapeTensor
    const { columns: count } = this.use(ids)
    this.use(table, count * Math.ceil((columns * elementBytes[dtype]) / page) * page)
    this.use(out)
  }

  linear(
    _: DeviceHandle,
    out: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    bias: TensorHandle | undefined,
  ) {
    if (bias) this.use(bias)
    const { rows, columns } = this.as('weights', weight)
    const { rows: tokens } = this.use(x)
    this.flop.linear += 2 * tokens * rows * columns
    this.use(out)
  }

  layerNorm(_: DeviceHandle, out: TensorHandle, x: TensorHandle): void {
    this.use(x)
    this.use(out)
  }

  rmsNorm(_: DeviceHandle, out: TensorHandle, x: TensorHandle): void {
    this.use(x)
    this.use(out)
  }

  rotary(_: DeviceHandle, x: TensorHandle): void {
    this.use(x)
  }

  attention(
    _: DeviceHandle,
    out: TensorHandle,
    q: TensorHandle,
    k: TensorHandle,
    v: TensorHandle,
    { sequence, heads, headDim, window }: AttentionArguments,
  ): void {
    const { rows: tokens } = this.use(q)
    this.use(k)
    this.use(v)
    const keys = window > 0 ? Math.min(window, sequence / 2) : sequence / 2
    this.flop.attention += 4 * tokens * keys * heads * headDim
    this.use(out)
  }

  activation(_: DeviceHandle, x: TensorHandle): void {
    this.use(x)
  }

  gate(_: DeviceHandle, x: TensorHandle, up: TensorHandle): void {
    this.use(up)
    this.use(x)
  }

  add(_: DeviceHandle, x: TensorHandle, y: TensorHandle): void {
    this.use(y)
    this.use(x)
  }

  scale(_: DeviceHandle, x: TensorHandle): void {
    this.use(x)
  }

  softcap(_: DeviceHandle, x: TensorHandle): void {
    this.use(x)
  }

  takeColumns(_: DeviceHandle, out: TensorHandle, x: TensorHandle): void {
    this.use(x)
    this.use(out)
  }

  scatterAdd(_: DeviceHandle, out: TensorHandle, x: TensorHandle): void {
    this.use(x)
    this.use(out)
  }

  crossEntropy(_: DeviceHandle, losses: TensorHandle, x: TensorHandle, head: TensorHandle): void {
    const { rows, columns } = this.use(head)
    this.flop.linear += 2 * this.use(x).rows * rows * columns
    this.use(losses)
  }

  // --- calibration and pruning ---

  accumulateGram(_: DeviceHandle, gram: TensorHandle, x: TensorHandle): void {
    const { rows: tokens, columns } = this.use(x)
    this.as('gram', gram)
    this.flop.gram += tokens * columns * (columns + 1)
  }

  accumulateSquares(_: DeviceHandle, sums: TensorHandle, x: TensorHandle): void {
    const { rows: tokens, columns } = this.use(x)
    this.as('gram', sums)
    this.flop.gram += 2 * tokens * columns
  }

  factorHessian(
    _: DeviceHandle,
    hessian: TensorHandle,
    dead: TensorHandle,
    _d: number,
    stats: TensorHandle,
  ): void {
    const { columns } = this.as('gram', hessian)
    this.as('solver', dead)
    this.as('solver', stats)
    this.flop.factor += columns ** 3 / 3
  }

  pruneSparsegpt(
    _: DeviceHandle,
    weight: TensorHandle,
    mask: TensorHandle,
    factor: TensorHandle,
    dead: TensorHandle,
    selection: SelectionArguments,
    blockSize: number,
    _bits: number,
    stats: TensorHandle,
  ): void {
    const { rows, columns } = this.use(weight)
    for (const tensor of [mask, dead, stats]) this.as('solver', tensor)
    this.use(factor)
    if (selection.mask) this.use(selection.mask)
    this.flop.solve += rows * columns ** 2
    // As native/cpu/prune.h says.
    const aligned = (count: number) => (2 * Math.ceil((Math.ceil(count / 64) - 1) / 2) + 1) * 64
    const rowsAtOnce = Math.min(rows, Math.max(256, 2 ** 23 / columns - 64))
    const coupled = selection.m === 0 && !selection.mask
    this.during(coupled ? 4 * aligned(rows) * (columns + 1.1 * blockSize) : 4 * columns * aligned(rowsAtOnce))
  }

  pruneMagnitude(
    _: DeviceHandle,
    weight: TensorHandle,
    mask: TensorHandle,
    selection: SelectionArguments,
    stats: TensorHandle,
  ): void {
    const { rows, columns } = this.use(weight)
    for (const tensor of [mask, stats]) this.as('solver', tensor)
    if (selection.mask) this.use(selection.mask)
    // Scores of the whole matrix are compared, unless every group has its own choice.
    if (selection.m === 0 && !selection.mask) this.during(8 * rows * columns)
  }

  pruneWanda(
    _: DeviceHandle,
    weight: TensorHandle,
    mask: TensorHandle,
    squares: TensorHandle,
    selection: SelectionArguments,
    stats: TensorHandle,
  ): void {
    this.use(weight)
    for (const tensor of [mask, stats]) this.as('solver', tensor)
    this.use(squares)
    if (selection.mask) this.use(selection.mask)
  }

  countZeros(): void {
    throw new TypeError('shapes have no zeros')
  }
}
