import { createRequire } from 'node:module'
import { join } from 'node:path'
import { SparseGptError } from '../errors.js'
import { isCheckout, packageFolder } from '../package.js'

/** The element type of a device tensor. */
export type DType = 'float32' | 'bfloat16' | 'float16' | 'float64' | 'int32' | 'uint8'

/** An activation function. */
export type Activation = 'relu' | 'gelu' | 'gelu_tanh' | 'silu' | 'relu2' | 'clamped_swish' | 'clamped_linear'

declare const brand: unique symbol
export interface DeviceHandle {
  [brand]: 'device'
}
export interface TensorHandle {
  [brand]: 'tensor'
}
export interface FileHandle {
  [brand]: 'file'
}
export interface SpillFileHandle {
  [brand]: 'spillFile'
}
export interface RecordingHandle {
  [brand]: 'recording'
}

export type HostArray = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array

/** An operation's operands and settings by the names of native/core/operations.h; undefined stands for "no tensor". */
export type Fields = Record<string, TensorHandle | number | boolean | string | undefined>

/** What distinguishes a kind of backend from others: native/core/registry.h. */
export interface BackendTraits {
  /** The kind as users name it: 'cpu', 'cuda'. */
  kind: string
  /** Whether its memory is the host's: then mapped files are operands as they are. */
  inHostMemory: boolean
  /** Whether weights arrive from files while other operations run, so that it pays to ask for them early. */
  loadsAhead: boolean
}

/** MPI as the native addon offers it: native/mpi/collectives.h. */
export interface Mpi {
  /** Starts MPI, at the first call. Throws DEVICE_UNAVAILABLE where it is not built or cannot be loaded. */
  start(): { rank: number; size: number; localRank: number; localSize: number }
  /** Enqueues the sum over ranks of a float32 tensor, in its place. */
  allReduce(device: DeviceHandle, tensor: TensorHandle, upper: boolean): void
  /** Enqueues the copy of a tensor's elements from `root` to all ranks. */
  broadcast(device: DeviceHandle, tensor: TensorHandle, root: number): void
  /** Returns what has come from other ranks, in bytes. */
  received(): number
  /** Ends the use of MPI once all ranks do. */
  finish(): void
  /** Ends all ranks, and this one, with an exit code. */
  abort(code: number): void
}

/** What the native addon offers beside devices: MPI, and native/core/output_paths.h. */
export interface SystemCalls {
  mpi: Mpi
  /** Lets two paths change places in one step. False where the file system cannot. Throws WRITE_FAILED. */
  exchangePaths(a: string, b: string): boolean
}

/** What the native addon exports for devices. It is not public: device.ts wraps it. */
export interface Addon {
  /** Lists the kinds of backends, in the order in which 'auto' tries them. */
  backends(): BackendTraits[]
  /** Looks for the devices of a kind; `memory` is in bytes, 0 for the process's; `reason` says why there is none. */
  probe(kind: string): { devices: { name: string; memory: number }[]; reason: string }
  /** Opens device `index` of a kind. Throws DEVICE_UNAVAILABLE. */
  openDevice(kind: string, index: number, threads: number): DeviceHandle
  closeDevice(device: DeviceHandle): void
  describeDevice(device: DeviceHandle): string
  /** Adds a folder in which the libraries of backends are looked for. */
  addLibraryFolder(path: string): void
  /** Says how the command begins that builds such a library; error messages put the library's name after it. */
  setBuildCommand(prefix: string): void
  /** Measures FLOP/s of multiply-adds in registers on that many threads (0: one per core): native/cpu/peak.h. */
  cpuPeak(dtype: DType, threads: number): number
  /** Measures the bytes/s that so many threads read from memory: native/cpu/peak.h. */
  cpuReadRate(threads: number): number
  /** Returns seconds by operation since the last call; the first call starts the measuring: native/core/device.h. */
  profile(device: DeviceHandle): Record<string, number>
  synchronize(device: DeviceHandle): Promise<void>

  allocate(device: DeviceHandle, dtype: DType, rows: number, columns: number): TensorHandle
  view(
    tensor: TensorHandle,
    firstRow: number,
    rows: number,
    firstColumn: number,
    columns: number,
  ): TensorHandle
  reshape(tensor: TensorHandle, rows: number, columns: number): TensorHandle
  release(tensor: TensorHandle): void
  upload(device: DeviceHandle, tensor: TensorHandle, array: HostArray): void
  download(device: DeviceHandle, tensor: TensorHandle, array: HostArray): Promise<void>
  mapFile(path: string): FileHandle
  mapTensor(file: FileHandle, offset: number, dtype: DType, rows: number, columns: number): TensorHandle
  releasePages(device: DeviceHandle, tensor: TensorHandle): void
  createSpillFile(folder: string): SpillFileHandle
  offload(device: DeviceHandle, tensor: TensorHandle, file: SpillFileHandle | undefined): void

  /** Enqueues an operation of the table (operations.ts). With a recording, it is added to that too, with `call.advance`. */
  run(
    device: DeviceHandle,
    operation: string,
    fields: Fields,
    call?: { advance?: Record<string, number> },
    recording?: RecordingHandle,
  ): void
  createRecording(): RecordingHandle
  /** Enqueues what was recorded, `pass` steps of what advances after that. */
  replay(device: DeviceHandle, recording: RecordingHandle, pass: number): void

  /** Makes a tensor that has a shape and no memory, for scratchBytes. `mapped`: as if in a file. */
  shapeTensor(dtype: DType, rows: number, columns: number, mapped: boolean): TensorHandle
  /** Checks an operation's operands and returns what a kind of backend takes for it beyond them, in bytes. */
  scratchBytes(kind: string, operation: string, fields: Fields): number
}

let loaded: (Addon & SystemCalls) | undefined

/**
 * Loads the native addon: a prebuilt one that fits this system, or the one compiled at installation.
 * Throws DEVICE_UNAVAILABLE with what to do when there is none.
 */
export function nativeAddon(): Addon & SystemCalls {
  if (loaded) return loaded
  const require = createRequire(import.meta.url)
  const load = require('node-gyp-build') as (folder: string) => Addon & SystemCalls
  try {
    loaded = load(packageFolder)
  } catch (cause) {
    throw new SparseGptError(
      'DEVICE_UNAVAILABLE',
      [
        `the native addon of sparsegpt could not be loaded on ${process.platform}-${process.arch}, Node ${process.version}.`,
        'What to do, in this order:',
        isCheckout
          ? '  1. npm run build:native (it says which compiler or cmake is missing)'
          : '  1. npm rebuild sparsegpt --foreground-scripts (it says what is missing)',
        '  2. check that npm did not run with --ignore-scripts, and that Node is 20.19, 22.12 or newer',
        `The loader said: ${cause instanceof Error ? cause.message : String(cause)}`,
      ].join('\n'),
      { cause },
    )
  }
  // A prebuilt addon lies elsewhere than what build:cuda makes.
  loaded.addLibraryFolder(join(packageFolder, 'build', 'Release'))
  loaded.setBuildCommand(isCheckout ? 'npm run build:' : 'npx sparsegpt build ')
  return loaded
}
