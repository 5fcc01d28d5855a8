import { setImmediate } from 'node:timers/promises'
import {
  nativeAddon,
  type Addon,
  type BackendTraits,
  type DeviceHandle,
  type DType,
  type Fields,
  type FileHandle,
  type HostArray,
  type RecordingHandle,
  type SpillFileHandle,
  type TensorHandle,
} from '../native/addon.js'
import type { Executor } from '../native/device.js'
import {
  operations,
  type Call,
  type MemoryPart,
  type Operation,
  type OperationName,
} from '../native/operations.js'
import { elementBytes } from '../native/tensor.js'

/** The units in which native/core/pages.cpp takes memory. */
const hugePage = 2 ** 21
const page = 4096
const pagesOf = (bytes: number, unit = page) => Math.max(1, Math.ceil(bytes / unit)) * unit
const rounded = (bytes: number) => pagesOf(bytes, bytes >= hugePage ? hugePage : page)

/** The bytes that tensors look at: memory that is taken when first used, or a file's pages. */
interface Storage {
  bytes: number
  kind: 'memory' | 'file'
  part: MemoryPart
  /** The number of bytes that are in memory. */
  resident: number
  /** Whether the bytes are in a spill file. */
  spilled: boolean
  /** The number of tensors that share it. */
  users: number
}

interface ShapeTensor {
  storage: Storage
  dtype: DType
  rows: number
  columns: number
  /** The addon's own tensor of this shape. */
  native: TensorHandle
  released?: true
}

const shapeOf = (handle: TensorHandle) => handle as unknown as ShapeTensor

/**
 * Carries operations out on shapes only: it runs no arithmetic, but checks the operands, and counts the memory that a device of
 * some kind would hold at every moment. What runs on it goes through the same operations, in the same order, as on a real device.
 */
export class ShapeExecutor implements Executor {
  /** The largest sum of all parts so far, and the parts at that moment, in bytes. */
  peak = { bytes: 0, parts: {} as Record<MemoryPart, number> }
  bytesRead = 0
  /** What went to and came from the spill file. */
  bytesOffloaded = 0
  spillFileBytes = 0
  /** What comes from other ranks. */
  bytesReceived = 0
  readonly shapeTensor: Addon['shapeTensor']
  readonly scratchBytes: Addon['scratchBytes']
  private spilledBytes = 0
  private readonly now: Record<MemoryPart, number> = { weights: 0, activations: 0, gram: 0, solver: 0 }
  private random = 1
  /** What scratchBytes has said of calls of the same operands and settings. */
  private readonly scratch = new Map<string, number>()
  private breath = performance.now()

  /** `traits`: of the kind of backend whose memory is counted; mapped pages lie in it if it is the host's. */
  constructor(
    private readonly traits: BackendTraits,
    private readonly addon: Addon = nativeAddon(),
  ) {
    this.shapeTensor = (...shape) => addon.shapeTensor(...shape)
    this.scratchBytes = (...call) => addon.scratchBytes(...call)
  }

  // --- memory ---

  private take(storage: Storage, bytes: number): void {
    storage.resident += bytes
    if (storage.kind === 'file' && !this.traits.inHostMemory) return
    this.now[storage.part] += bytes
    const total = Object.values(this.now).reduce((a, b) => a + b, 0)
    if (total > this.peak.bytes) this.peak = { bytes: total, parts: { ...this.now } }
  }

  private give(storage: Storage): void {
    if (storage.kind === 'memory' || this.traits.inHostMemory) this.now[storage.part] -= storage.resident
    storage.resident = 0
  }

  /** The tensor's bytes are read or written; of a file's `rows` rows. */
  private use(tensor: ShapeTensor, rows?: number): void {
    const { storage } = tensor
    if (storage.kind === 'file') {
      const row = tensor.columns * elementBytes[tensor.dtype]
      const touched = rows === undefined ? Infinity : rows * pagesOf(row)
      const more = Math.min(touched, storage.bytes - storage.resident)
      this.bytesRead += more
      this.take(storage, more)
    } else if (storage.resident === 0) {
      if (storage.spilled) this.bytesOffloaded += storage.bytes
      this.unspill(storage)
      this.take(storage, rounded(storage.bytes))
    }
  }

  /** Counts the tensor's memory as `part` from then on. */
  private assign(tensor: ShapeTensor, part: MemoryPart): void {
    const { storage } = tensor
    if (storage.kind !== 'memory') return
    this.now[storage.part] -= storage.resident
    this.now[part] += storage.resident
    storage.part = part
  }

  /** Counts memory that an operation takes while it runs. */
  private during(bytes: number): void {
    const scratch: Storage = { bytes, kind: 'memory', part: 'solver', resident: 0, spilled: false, users: 1 }
    this.take(scratch, bytes)
    this.give(scratch)
  }

  run(
    _: DeviceHandle,
    name: OperationName,
    fields: Fields,
    { read = {}, rowsRead = {}, make = {} }: Call,
  ): void {
    const { phase, parts = {} } = operations[name] as Operation
    const tensors = Object.entries(fields).flatMap(([key, field]): [string, ShapeTensor][] =>
      typeof field === 'object' ? [[key, shapeOf(field)]] : [],
    )
    for (const [key, tensor] of tensors) {
      const part = parts[key]
      if (part) this.assign(tensor, part)
      if (key in read) this.use(tensor, rowsRead[key])
    }
    const source = tensors.find(([key]) => key in read)?.[1].storage
    for (const [key, tensor] of tensors) {
      // What a conversion makes is used as what it was made of.
      if (phase === 'convert' && key in make && source) this.assign(tensor, source.part)
      if (!(key in read)) this.use(tensor)
    }
    this.during(this.scratchOf(name, fields, tensors))
  }

  private scratchOf(name: OperationName, fields: Fields, tensors: [string, ShapeTensor][]): number {
    const shapes = tensors.map(
      ([key, { rows, columns, dtype, storage }]) => `${key} ${rows} ${columns} ${dtype} ${storage.kind}`,
    )
    const settings = Object.values(fields).filter((field) => typeof field !== 'object')
    const key = `${name} ${shapes.join()} ${settings.join()}`
    let bytes = this.scratch.get(key)
    if (bytes === undefined) {
      const native = tensors.map(([field, tensor]): [string, TensorHandle] => [field, tensor.native])
      bytes = this.addon.scratchBytes(this.traits.kind, name, { ...fields, ...Object.fromEntries(native) })
      this.scratch.set(key, bytes)
    }
    return bytes
  }

  private tensor(
    storage: Storage,
    dtype: DType,
    rows: number,
    columns: number,
    native = this.addon.shapeTensor(dtype, rows, columns, storage.kind === 'file'),
  ): TensorHandle {
    storage.users++
    return { storage, dtype, rows, columns, native } satisfies ShapeTensor as unknown as TensorHandle
  }

  backends = () => this.addon.backends()
  probe = () => ({ devices: [{ name: '', memory: 0 }], reason: '' })
  openDevice = () => ({}) as DeviceHandle
  closeDevice = () => undefined
  describeDevice = () => 'shapes only'
  addLibraryFolder = () => undefined
  setBuildCommand = () => undefined
  cpuPeak = () => 0
  cpuReadRate = () => 0
  profile = () => ({})

  /** Lets timers and signals through: a plan of a large model takes seconds. */
  async synchronize(): Promise<void> {
    if (performance.now() - this.breath < 20) return
    await setImmediate()
    this.breath = performance.now()
  }

  allocate(_: DeviceHandle, dtype: DType, rows: number, columns: number): TensorHandle {
    const bytes = rows * columns * elementBytes[dtype]
    const storage = {
      bytes,
      kind: 'memory',
      part: 'activations',
      resident: 0,
      spilled: false,
      users: 0,
    } as const
    return this.tensor({ ...storage }, dtype, rows, columns)
  }

  view(handle: TensorHandle, row: number, rows: number, column: number, columns: number): TensorHandle {
    const { storage, dtype, native } = shapeOf(handle)
    return this.tensor(storage, dtype, rows, columns, this.addon.view(native, row, rows, column, columns))
  }

  reshape(handle: TensorHandle, rows: number, columns: number): TensorHandle {
    const { storage, dtype, native } = shapeOf(handle)
    return this.tensor(storage, dtype, rows, columns, this.addon.reshape(native, rows, columns))
  }

  release(handle: TensorHandle): void {
    const tensor = shapeOf(handle)
    if (tensor.released) return
    tensor.released = true
    this.addon.release(tensor.native)
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
    const { storage } = shapeOf(handle)
    if (storage.kind === 'file') this.give(storage)
  }

  createSpillFile = () => ({}) as SpillFileHandle
  createRecording = () => ({}) as RecordingHandle
  replay = () => undefined

  offload(_: DeviceHandle, handle: TensorHandle): void {
    const { storage } = shapeOf(handle)
    if (storage.kind === 'file' || storage.resident === 0) return
    this.give(storage)
    storage.spilled = true
    this.bytesOffloaded += storage.bytes
    this.spilledBytes += storage.bytes
    this.spillFileBytes = Math.max(this.spillFileBytes, this.spilledBytes)
  }

  upload(_: DeviceHandle, handle: TensorHandle): void {
    this.use(shapeOf(handle))
  }

  /** Makes float32 elements up, different from each other: a router then spreads its tokens over all experts. */
  download(_: DeviceHandle, handle: TensorHandle, array: HostArray): Promise<void> {
    this.use(shapeOf(handle))
    if (array instanceof Float32Array) {
      for (let i = 0; i < array.length; i++) {
        this.random = (Math.imul(this.random, 1664525) + 1013904223) >>> 0
        array[i] = this.random / 2 ** 32
      }
    }
    return Promise.resolve()
  }
}
