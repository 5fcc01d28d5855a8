import { emptyCheckpoint } from '../../files/checkpoint.js'
import { BlockWeights } from '../../models/block-weights.js'
import { Engine } from '../../models/engine.js'
import { familyOf } from '../../models/registry.js'
import { Weights } from '../../models/weights.js'
import type { Device, DType, Tensor, Work } from '../../native/device.js'
import type { Arithmetic } from '../../native/operations.js'
import { sparsegpt } from '../../pruning/methods/sparsegpt.js'
import type { BenchCase } from './case.js'

/** What the operations of a run came to. */
export interface Run {
  /** The time that they took on the device. */
  seconds: number
  /** The number of their floating-point operations, as the operation table counts them. */
  flop: number
  /** The time of each operation, by name. */
  operations: Record<string, number>
  /** The floating-point operations by kind. */
  kinds: Work['flop']
}

/** A case on a device, with random data. */
export interface Workload {
  run(): Promise<Run>
  dispose(): void
}

/** Makes the data of a case. The device's profile must have been started. Throws OUT_OF_MEMORY. */
export async function createWorkload(device: Device, c: BenchCase): Promise<Workload> {
  const owned: Tensor[] = []
  const run = await device.within(owned, () => workload(device, c))
  return {
    run,
    dispose: () => {
      for (const tensor of owned) tensor.dispose()
    },
  }
}

type Runner = () => Promise<Run>

function workload(device: Device, c: BenchCase): Runner | Promise<Runner> {
  switch (c.operation) {
    case 'linear': {
      const x = random(device, c.dtype, [c.tokens, c.inputs])
      const weight = random(device, c.dtype, [c.outputs, c.inputs])
      return () => timed(device, () => device.linear(x, weight))
    }
    case 'gram': {
      const x = random(device, c.dtype, [c.tokens, c.columns])
      const gram = device.zeros('float32', [c.columns, c.columns])
      return () => timed(device, () => device.accumulateGram(gram, x, 1 / c.tokens))
    }
    case 'solver':
      return solver(device, c)
    case 'forward':
      return forward(device, c)
  }
}

async function solver(device: Device, c: BenchCase & { operation: 'solver' }): Promise<Runner> {
  const { rows, columns: n } = c
  const dense = random(device, 'float32', [rows, n])
  const gram = device.zeros('float32', [n, n])
  // The Gram matrix of 2n random inputs is far from singular.
  const tokens = Math.min(2 * n, 4096)
  for (let seen = 0; seen < 2 * n; seen += tokens) {
    const x = device.within([], () => random(device, 'float32', [tokens, n]))
    device.accumulateGram(gram, x, 1 / n)
    x.dispose()
    await device.synchronize()
  }
  const selection = c.pattern ? { pattern: c.pattern } : { sparsity: 0.5 }
  return async () => {
    const copies = device.within(
      [],
      () => [device.cast(gram, 'float32'), device.cast(dense, 'float32')] as const,
    )
    const [hessian, weight] = copies
    const options = { blockSize: 128, dampening: 0.01, bits: c.bits }
    const run = await timed(device, () =>
      sparsegpt.prepare(device, options, hessian).prune(weight, selection),
    )
    for (const copy of copies) copy.dispose()
    return run
  }
}

function forward(
  device: Device,
  { model, config, tokens, dtype }: BenchCase & { operation: 'forward' },
): Runner {
  const weights = new RandomWeights(device, emptyCheckpoint(config), dtype)
  const architecture = familyOf(config).build(config, weights)
  const block = new BlockWeights(device, weights, architecture.block(0))
  const engine = new Engine(device, architecture, weights, emptyCheckpoint(config), model)
  const hidden = random(device, dtype, [tokens, architecture.hiddenSize])
  const batch = { sequences: { count: 1, length: tokens, start: 0 }, hidden }
  return () =>
    timed(device, async () => {
      const output = await engine.runBlock(0, block, batch).finish()
      output.dispose()
    })
}

/** Weights of random numbers, under any name. */
export class RandomWeights extends Weights {
  private readonly numbers = new Map<string, Float32Array>()

  override stored(name: string, shape: readonly number[]): Tensor {
    const held = this.held?.get(name)
    if (held) return held
    const scale = shape.length > 1 ? (shape[1] ?? 1) ** -0.5 : 1
    const key = shape.join()
    const numbers = this.numbers.get(key) ?? randomNumbers(shape, scale)
    this.numbers.set(key, numbers)
    const make = () => uploaded(this.device, this.dtype, shape, numbers)
    if (!this.held) return make()
    const tensor = this.device.within([], make) // it outlives the pass
    this.held.set(name, tensor)
    return tensor
  }
}

/** Measures the operations that `body` enqueues. */
async function timed(device: Device, body: () => unknown): Promise<Run> {
  await device.profile()
  const made: Tensor[] = []
  const before = { ...device.work.flop }
  await device.within(made, body)
  for (const tensor of made) tensor.dispose()
  const operations = await device.profile()
  const kinds = { ...device.work.flop }
  for (const kind of Object.keys(kinds) as Arithmetic[]) kinds[kind] -= before[kind]
  return { seconds: sum(Object.values(operations)), flop: sum(Object.values(kinds)), operations, kinds }
}

const sum = (values: number[]) => values.reduce((a, b) => a + b, 0)

/** Uniform integers of 32 bits; the same every time. */
export function randomIntegers(count: number): Int32Array {
  const integers = new Int32Array(count)
  let state = 0x9e3779b9
  for (let i = 0; i < count; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    integers[i] = state
  }
  return integers
}

/** Uniform numbers in [-1, 1). */
function random(device: Device, dtype: DType, shape: readonly number[]): Tensor {
  return uploaded(device, dtype, shape, randomNumbers(shape, 1))
}

/** Uniform numbers in [-scale, scale); the same every time. */
function randomNumbers(shape: readonly number[], scale: number): Float32Array {
  const integers = randomIntegers(shape.reduce((a, b) => a * b, 1))
  const numbers = new Float32Array(integers.length)
  for (let i = 0; i < numbers.length; i++) numbers[i] = integers[i]! * scale * 2 ** -31
  return numbers
}

function uploaded(device: Device, dtype: DType, shape: readonly number[], numbers: Float32Array): Tensor {
  if (dtype === 'float32') return device.upload(numbers, shape)
  const float32 = device.within([], () => device.upload(numbers, shape))
  const tensor = device.cast(float32, dtype)
  float32.dispose()
  return tensor
}
