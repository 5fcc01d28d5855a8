import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { SparseGptError } from '../errors.js'

/** Element types of device tensors. */
export type DType = 'float32' | 'bfloat16' | 'float16' | 'float64' | 'int32' | 'uint8'

export type Activation = 'relu' | 'gelu' | 'gelu_tanh' | 'silu'

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

export type HostArray = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array

export interface AttentionArguments {
  sequence: number
  heads: number
  kvHeads: number
  headDim: number
  scale: number
  window: number
  softcap: number
  slopes: TensorHandle | undefined
}

/** A mask decides; else, with m > 0, n of every m; else trunc(count · sparsity). */
export interface SelectionArguments {
  sparsity: number
  n: number
  m: number
  mask: TensorHandle | undefined
}

/**
 * What the native addon exports: one function per operation of `Backend` (native/core/backend.h, which documents them), each
 * enqueued on the device it is given, and a few for devices, tensors and files. Not public: device.ts wraps it.
 */
export interface Addon {
  openDevice(threads: number): DeviceHandle
  openCudaDevice(): DeviceHandle
  /** memory in bytes; reason says why there is no device, and is empty when there is one. */
  probeCudaDevice(): { name: string; memory: number; reason: string }
  closeDevice(device: DeviceHandle): void
  describeDevice(device: DeviceHandle): string
  cpuLevels(): string[]
  /** FLOP/s of multiply-adds in registers on that many threads (0: one per core): native/cpu/peak.h. Some ten milliseconds. */
  cpuPeak(dtype: DType, threads: number): number
  /** Seconds by operation since the last call; the first call starts the measuring: native/core/device.h. */
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

  cast(device: DeviceHandle, out: TensorHandle, input: TensorHandle): void
  transpose(device: DeviceHandle, out: TensorHandle, input: TensorHandle): void
  fill(device: DeviceHandle, out: TensorHandle, value: number): void
  writeFile(device: DeviceHandle, fd: number, position: number, tensor: TensorHandle): void

  embedding(device: DeviceHandle, out: TensorHandle, table: TensorHandle, ids: TensorHandle): void
  linear(
    device: DeviceHandle,
    out: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    bias: TensorHandle | undefined,
  ): void
  layerNorm(
    device: DeviceHandle,
    out: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    bias: TensorHandle,
    epsilon: number,
  ): void
  rmsNorm(
    device: DeviceHandle,
    out: TensorHandle,
    x: TensorHandle,
    weight: TensorHandle,
    epsilon: number,
  ): void
  rotary(
    device: DeviceHandle,
    x: TensorHandle,
    cosine: TensorHandle,
    sine: TensorHandle,
    headDim: number,
    interleaved: boolean,
  ): void
  attention(
    device: DeviceHandle,
    out: TensorHandle,
    q: TensorHandle,
    k: TensorHandle,
    v: TensorHandle,
    shape: AttentionArguments,
  ): void
  activation(device: DeviceHandle, x: TensorHandle, kind: Activation): void
  gate(device: DeviceHandle, x: TensorHandle, up: TensorHandle, kind: Activation): void
  add(device: DeviceHandle, x: TensorHandle, y: TensorHandle): void
  scale(device: DeviceHandle, x: TensorHandle, factor: number): void
  softcap(device: DeviceHandle, x: TensorHandle, cap: number): void
  takeColumns(
    device: DeviceHandle,
    out: TensorHandle,
    x: TensorHandle,
    first: number,
    count: number,
    stride: number,
  ): void
  scatterAdd(
    device: DeviceHandle,
    out: TensorHandle,
    x: TensorHandle,
    ids: TensorHandle,
    factors: TensorHandle,
  ): void
  crossEntropy(
    device: DeviceHandle,
    losses: TensorHandle,
    x: TensorHandle,
    head: TensorHandle,
    bias: TensorHandle | undefined,
    softcap: number,
    targets: TensorHandle,
  ): void

  accumulateGram(device: DeviceHandle, gram: TensorHandle, x: TensorHandle, scale: number): void
  accumulateSquares(device: DeviceHandle, sums: TensorHandle, x: TensorHandle, scale: number): void
  factorHessian(
    device: DeviceHandle,
    hessian: TensorHandle,
    dead: TensorHandle,
    dampening: number,
    stats: TensorHandle,
  ): void
  pruneSparsegpt(
    device: DeviceHandle,
    weight: TensorHandle,
    mask: TensorHandle,
    factor: TensorHandle,
    dead: TensorHandle,
    selection: SelectionArguments,
    blockSize: number,
    bits: number,
    stats: TensorHandle,
  ): void
  pruneMagnitude(
    device: DeviceHandle,
    weight: TensorHandle,
    mask: TensorHandle,
    selection: SelectionArguments,
    stats: TensorHandle,
  ): void
  pruneWanda(
    device: DeviceHandle,
    weight: TensorHandle,
    mask: TensorHandle,
    squares: TensorHandle,
    selection: SelectionArguments,
    stats: TensorHandle,
  ): void
  countZeros(device: DeviceHandle, stats: TensorHandle, tensor: TensorHandle, patterns: TensorHandle): void
}

/** The package's own folder; this file lies two levels below it, in src/ as in dist/. */
const packageFolder = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

let loaded: Addon | undefined

/**
 * The native addon: a prebuilt one that fits this system, or the one compiled at installation.
 * Throws DEVICE_UNAVAILABLE with what to do when there is none.
 */
export function nativeAddon(): Addon {
  if (loaded) return loaded
  const require = createRequire(import.meta.url)
  const load = require('node-gyp-build') as (folder: string) => Addon
  try {
    loaded = load(packageFolder)
  } catch (cause) {
    throw new SparseGptError(
      'DEVICE_UNAVAILABLE',
      [
        `the native addon of sparsegpt could not be loaded on ${process.platform}-${process.arch}, Node ${process.version}.`,
        'What to do, in this order:',
        '  1. in a checkout: npm run build:native (it says which compiler or cmake is missing)',
        '  2. as a dependency: npm rebuild sparsegpt --foreground-scripts',
        '  3. check that npm did not run with --ignore-scripts, and that Node is 20.17 or newer',
        `The loader said: ${cause instanceof Error ? cause.message : String(cause)}`,
      ].join('\n'),
      { cause },
    )
  }
  return loaded
}
