import { AsyncLocalStorage } from 'node:async_hooks'
import { SparseGptError } from '../errors.js'
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
} from './addon.js'
import { awaitNative, native } from './failure.js'
import {
  bytesMoved,
  operations,
  type Arithmetic,
  type Call,
  type Operation,
  type OperationMethods,
  type OperationName,
} from './operations.js'
import { matrixShape, Tensor } from './tensor.js'

export type { Activation, DType, SpillFileHandle } from './addon.js'
export type { AttentionShape, Choice } from './operations.js'
export { Tensor } from './tensor.js'

/**
 * The name of a device in options: 'cpu'; 'cuda' for the first NVIDIA GPU, 'cuda:1' for the second; 'auto' for a GPU where
 * there is one, else the CPU.
 */
export type DeviceName = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`

/** What carries a device's calls out: the native addon, or something that only counts. It may look at the call, too. */
export interface Executor extends Omit<Addon, 'run'> {
  run(
    device: DeviceHandle,
    operation: OperationName,
    fields: Fields,
    call: Call,
    recording?: RecordingHandle,
  ): void
}

/** The work that a device has been handed. */
export interface Work {
  /** The floating-point operations by kind; a multiply-add is two. */
  flop: Record<Arithmetic, number>
  /** The bytes that operations read and write. */
  bytes: number
}

/**
 * Operations that have been carried out and can be again, on the same tensors, at hardly any cost to the JavaScript thread. What a call says
 * that advances is further on every time. It keeps the memory of its tensors until it is garbage.
 */
export class Recording {
  /** Whether something was done that cannot be done again: tensors were read, replaced or moved. */
  broken = false

  constructor(
    readonly device: Device,
    readonly handle: RecordingHandle,
  ) {}
}

/** The methods that follow from the operation table. */
// eslint-disable-next-line @typescript-eslint/no-extraneous-class -- the table fills it
const Methods = class {} as new () => OperationMethods
for (const name of Object.keys(operations) as OperationName[]) {
  const { call } = operations[name] as unknown as { call: (...args: unknown[]) => Call }
  const method = function (this: Device, ...args: unknown[]) {
    return this.perform(name, call(...args))
  }
  Object.defineProperty(Methods.prototype, name, { value: method })
}

/** Where the tensors go that a device makes. */
interface Scope {
  device: Device
  tensors: Tensor[] | undefined
  outer: Scope | undefined
  /** What operations are added to. */
  recording: Recording | undefined
}

/** The innermost open scope of any device. One for all devices: each storage that there is makes every promise a little slower. */
const scopes = new AsyncLocalStorage<Scope>()

/**
 * A device with its queue. Operations return at once and run in order on native threads; `synchronize` and `read` wait and
 * report the first failure since the last wait. Operations that make a tensor put it into the innermost open scope.
 */
export class Device extends Methods {
  /** The name that opens this device again: 'cpu', 'cuda', 'cuda:1'. */
  readonly name: Exclude<DeviceName, 'auto'>
  /** What distinguishes it from devices of other kinds. */
  readonly traits: BackendTraits
  /** The work handed over so far. */
  readonly work: Work = { flop: { linear: 0, attention: 0, gram: 0, factor: 0, solve: 0 }, bytes: 0 }
  private readonly handle: DeviceHandle
  private readonly index: number

  /**
   * `threads`: of the CPU, 0 for one per core. `executor`: what carries the operations out.
   * Throws DEVICE_UNAVAILABLE.
   */
  constructor(
    name: DeviceName = 'cpu',
    private readonly threads = 0,
    private readonly executor: Executor = nativeAddon(),
  ) {
    super()
    const { traits, index } = findBackend(name, executor)
    this.traits = traits
    this.index = index
    this.name = (index === 0 ? traits.kind : `${traits.kind}:${index}`) as Exclude<DeviceName, 'auto'>
    this.handle = this.open()
  }

  private open(): DeviceHandle {
    try {
      return native(() => this.executor.openDevice(this.traits.kind, this.index, this.threads))
    } catch (error) {
      if (!(error instanceof SparseGptError) || error.code !== 'DEVICE_UNAVAILABLE') throw error
      const message = `device "${this.name}" is not available: ${error.message}. Use device "cpu", or "auto" to fall back to it`
      throw new SparseGptError('DEVICE_UNAVAILABLE', message, { cause: error })
    }
  }

  /** A description for people: instruction set and threads, or the GPU. */
  get description(): string {
    return this.executor.describeDevice(this.handle)
  }

  /** The size of the device's own memory, in bytes; undefined for a device that works in the process's. */
  get memory(): number | undefined {
    if (this.traits.inHostMemory) return undefined
    return this.executor.probe(this.traits.kind).devices[this.index]?.memory
  }

  /** Measures FLOP/s of multiply-adds in registers, in some ten milliseconds; undefined for a device that cannot. */
  registerPeak(dtype: DType): number | undefined {
    return this.traits.inHostMemory ? native(() => this.executor.cpuPeak(dtype, this.threads)) : undefined
  }

  /** Measures the bytes/s that the device's threads read from memory; undefined for a GPU. */
  readRate(): number | undefined {
    return this.traits.inHostMemory ? native(() => this.executor.cpuReadRate(this.threads)) : undefined
  }

  /**
   * The seconds that the device spent since the last call, by operation; waits for the queue as `synchronize` does. The first
   * call starts the measuring: from then on a GPU finishes each operation before the next begins.
   */
  async profile(): Promise<Record<string, number>> {
    await this.synchronize()
    return this.executor.profile(this.handle)
  }

  /** Waits until everything enqueued so far has run; rejects with the first failure as SparseGptError. */
  async synchronize(): Promise<void> {
    await awaitNative(() => this.executor.synchronize(this.handle))
  }

  /**
   * Waits for the queue and frees the device. Failures of what was still queued are not reported; what is awaited later than
   * that rejects with ABORTED or DEVICE_UNAVAILABLE.
   */
  async close(): Promise<void> {
    await this.synchronize().catch(() => undefined)
    this.executor.closeDevice(this.handle)
  }

  /** Disposes of every tensor made while `body` runs, except the returned one(s). */
  tidy<T extends Tensor | Tensor[] | undefined>(body: () => T): T {
    const mine: Tensor[] = []
    try {
      const result = this.within(mine, body)
      const kept = new Set<Tensor>(result === undefined ? [] : Array.isArray(result) ? result : [result])
      for (const tensor of mine) if (!kept.has(tensor)) tensor.dispose()
      this.scope?.push(...kept)
      return result
    } catch (error) {
      for (const tensor of mine) tensor.dispose()
      throw error
    }
  }

  /** Runs `body`, until its promise settles if it returns one, with `tensors` as the scope; the caller disposes of them. */
  within<T>(tensors: Tensor[], body: () => T): T {
    const outer = scopes.getStore()
    return scopes.run({ device: this, tensors, outer, recording: outer?.recording }, body)
  }

  /**
   * Runs `body` and records the operations that it enqueues on this device; `tensors` is their scope, which the caller disposes of. What
   * it uploads stays as it is; a body that reads tensors has no recording.
   */
  async record<T>(
    tensors: Tensor[],
    body: () => Promise<T>,
  ): Promise<{ result: T; recording: Recording | undefined }> {
    const handle = native(() => this.executor.createRecording())
    const recording = new Recording(this, handle)
    const scope = { device: this, tensors, outer: scopes.getStore(), recording }
    const result = await scopes.run(scope, body)
    return { result, recording: recording.broken ? undefined : recording }
  }

  /** Enqueues recorded operations once more, `pass` steps of what advances after they were recorded. */
  replay(recording: Recording, pass: number): void {
    native(() => this.executor.replay(this.handle, recording.handle, pass))
  }

  /** The innermost recording of this device. */
  private get recording(): Recording | undefined {
    const recording = scopes.getStore()?.recording
    return recording?.device === this ? recording : undefined
  }

  private breakRecording(): void {
    const { recording } = this
    if (recording) recording.broken = true
  }

  private get scope(): Tensor[] | undefined {
    let scope = scopes.getStore()
    while (scope && scope.device !== this) scope = scope.outer
    return scope?.tensors
  }

  /** Puts a tensor that no operation has made, such as a view, into the innermost open scope. */
  adopt(tensor: Tensor): Tensor {
    this.scope?.push(tensor)
    return tensor
  }

  /** Enqueues a call of an operation; the methods of the table's names are the usual way to do so. */
  perform(name: OperationName, call: Call): Tensor | Record<string, Tensor> | undefined {
    const { arithmetic } = operations[name] as Operation
    const made = Object.entries(call.make ?? {}).map(([key, goal]): [string, Tensor] => [
      key,
      goal instanceof Tensor ? goal : this.empty(goal.dtype, goal.shape),
    ])
    const operands = [...made, ...Object.entries({ ...call.change, ...call.read })]
    const fields = Object.fromEntries(operands.map(([key, tensor]) => [key, tensor?.handle]))
    native(() =>
      this.executor.run(this.handle, name, { ...fields, ...call.settings }, call, this.recording?.handle),
    )
    if (arithmetic) this.work.flop[arithmetic] += call.flop ?? 0
    this.work.bytes += bytesMoved(
      call,
      made.map(([, tensor]) => tensor),
    )
    return made.length > 1 ? Object.fromEntries(made) : made[0]?.[1]
  }

  /** Lets `enqueue` put something on the queue that is no operation of the table. */
  handOver(enqueue: (device: DeviceHandle) => void): void {
    this.breakRecording()
    native(() => enqueue(this.handle))
  }

  // --- tensors ---

  /** Makes a tensor whose elements are not initialised. */
  empty(dtype: DType, shape: readonly number[]): Tensor {
    const [rows, columns] = matrixShape(shape)
    const handle = native(() => this.executor.allocate(this.handle, dtype, rows, columns))
    return this.adopt(new Tensor(handle, dtype, shape, this.executor))
  }

  zeros(dtype: 'float32' | 'float64', shape: readonly number[]): Tensor {
    return this.fill(this.empty(dtype, shape), 0)
  }

  mapFile(path: string): FileHandle {
    return native(() => this.executor.mapFile(path))
  }

  /** A tensor whose elements lie in a mapped file, `offset` bytes from its start. Throws INVALID_CHECKPOINT. */
  mapTensor(file: FileHandle, offset: number, dtype: DType, shape: readonly number[]): Tensor {
    const [rows, columns] = matrixShape(shape)
    const handle = native(() => this.executor.mapTensor(file, offset, dtype, rows, columns))
    return new Tensor(handle, dtype, shape, this.executor)
  }

  /** Copies on the queue: `array` must not change before the next synchronisation. */
  upload(array: Float32Array | Int32Array | Uint8Array, shape: readonly number[], as?: DType): Tensor {
    const own = array instanceof Float32Array ? 'float32' : array instanceof Int32Array ? 'int32' : 'uint8'
    const tensor = this.empty(as ?? own, shape)
    native(() => this.executor.upload(this.handle, tensor.handle, array))
    return tensor
  }

  /** Replaces a tensor's elements. Copies on the queue: `array` must not change before the next synchronisation. */
  write(tensor: Tensor, array: Float32Array | Int32Array | Uint8Array): void {
    this.breakRecording()
    native(() => this.executor.upload(this.handle, tensor.handle, array))
  }

  /** Resolves to the tensor's elements, of float32, float64, int32 and uint8 tensors only. Waits for the queue. */
  async read(tensor: Tensor): Promise<HostArray> {
    this.breakRecording()
    const array = allocateHost(tensor.dtype, tensor.rows * tensor.width)
    await awaitNative(() => this.executor.download(this.handle, tensor.handle, array))
    return array
  }

  async readFloat32(tensor: Tensor): Promise<Float32Array> {
    return (await this.read(tensor)) as Float32Array
  }

  /** The tensor in memory that the device computes in, to be disposed of: a copy of a mapped one on a GPU, else itself. */
  resident(tensor: Tensor): Tensor {
    return this.traits.inHostMemory ? tensor.share() : this.cast(tensor, tensor.dtype)
  }

  /** Gives a mapped tensor's pages back to the system once what is enqueued so far has run. */
  releasePages(tensor: Tensor): void {
    native(() => this.executor.releasePages(this.handle, tensor.handle))
  }

  /** Makes a nameless file in an existing folder for `offload`. Throws WRITE_FAILED. */
  createSpillFile(folder: string): SpillFileHandle {
    return native(() => this.executor.createSpillFile(folder))
  }

  /**
   * Moves the storage of the tensor and of its views out of the device's memory until one of them is used again: to `file`, or
   * without one from a GPU to the host's memory. A failure (WRITE_FAILED) shows at the next synchronisation.
   */
  offload(tensor: Tensor, file?: SpillFileHandle): void {
    this.breakRecording()
    native(() => this.executor.offload(this.handle, tensor.handle, file))
  }
}

/** The kind and the number of the device that a name stands for. Throws DEVICE_UNAVAILABLE. */
export function findBackend(
  name: DeviceName,
  executor: Pick<Executor, 'backends' | 'probe'> = nativeAddon(),
): { traits: BackendTraits; index: number } {
  const backends = executor.backends()
  if (name === 'auto') {
    const traits = backends.find(({ kind }) => executor.probe(kind).devices.length > 0)
    if (traits) return { traits, index: 0 }
  }
  const [wanted, number = '0'] = name.split(':')
  const traits = backends.find(({ kind }) => kind === wanted)
  if (traits) return { traits, index: Number(number) }
  const known = backends.map(({ kind }) => kind).join(', ')
  throw new SparseGptError('DEVICE_UNAVAILABLE', `there is no device "${name}"; known are ${known}`)
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
