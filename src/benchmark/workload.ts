import { Block, BlockRun } from '../models/block.js'
import { familyOf } from '../models/registry.js'
import { rotaryAngles } from '../models/rotary.js'
import { BlockWeights, Weights } from '../models/weights.js'
import type { Device, DType, Tensor } from '../native/device.js'
import type { BenchCase } from './case.js'

/** A case on a device, with random data. */
export interface Workload {
  /** Floating-point operations of a run. Of the solver n³/3 + rows · n², without what the mask and the rounding cost. */
  flop: number
  /** Runs it once; resolves to the seconds that its operations took on the device. */
  run(): Promise<number>
  dispose(): void
}

/** The device's profile must have been started. Throws OUT_OF_MEMORY. */
export async function createWorkload(device: Device, c: BenchCase): Promise<Workload> {
  const owned: Tensor[] = []
  const parts = await device.within(owned, () => workloads(device, c))
  return {
    ...parts,
    dispose: () => {
      for (const tensor of owned) tensor.dispose()
    },
  }
}

type Parts = Omit<Workload, 'dispose'>

function workloads(device: Device, c: BenchCase): Parts | Promise<Parts> {
  switch (c.operation) {
    case 'linear': {
      const x = random(device, c.dtype, [c.tokens, c.inputs])
      const weight = random(device, c.dtype, [c.outputs, c.inputs])
      return {
        flop: 2 * c.tokens * c.inputs * c.outputs,
        run: () => timed(device, () => device.linear(x, weight)),
      }
    }
    case 'gram': {
      const x = random(device, c.dtype, [c.tokens, c.columns])
      const gram = device.zeros('float32', [c.columns, c.columns])
      return {
        flop: c.tokens * c.columns * (c.columns + 1),
        run: () => timed(device, () => device.accumulateGram(gram, x, 1 / c.tokens)),
      }
    }
    case 'solver':
      return solver(device, c)
    case 'forward':
      return forward(device, c)
  }
}

async function solver(device: Device, c: BenchCase & { operation: 'solver' }): Promise<Parts> {
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
  return {
    flop: n ** 3 / 3 + rows * n ** 2,
    run: async () => {
      const copies = device.within(
        [],
        () => [device.cast(gram, 'float32'), device.cast(dense, 'float32')] as const,
      )
      const [hessian, weight] = copies
      const seconds = await timed(device, () => {
        const factor = device.factorHessian(hessian, 0.01)
        device.pruneSparsegpt(weight, factor, selection, { blockSize: 128, bits: c.bits ?? 0 })
      })
      for (const copy of copies) copy.dispose()
      return seconds
    },
  }
}

function forward(device: Device, { config, tokens, dtype }: BenchCase & { operation: 'forward' }): Parts {
  // The block's weights are set below, so nothing is read from a checkpoint.
  const weights = new Weights(device, { folder: '', config, shards: [], tensors: new Map() }, dtype)
  const architecture = familyOf(config).build(config, weights)
  const spec = architecture.block(0)
  const block = new BlockWeights(device, spec, new Map(spec.linears.map((linear) => [linear.name, linear])))
  for (const { name, rows, columns, bias } of spec.linears) {
    block.set(`${name}.weight`, random(device, dtype, [rows, columns], columns ** -0.5))
    if (bias) block.set(`${name}.bias`, random(device, 'float32', [rows]))
  }
  for (const { name, shape } of spec.parameters) block.set(name, random(device, 'float32', shape))
  const angles = architecture.rotary && rotaryAngles(architecture.rotary, tokens)
  const tables = angles && {
    cosine: device.upload(angles.cosine, angles.shape),
    sine: device.upload(angles.sine, angles.shape),
  }
  const x = random(device, dtype, [tokens, architecture.hiddenSize])
  const products = spec.linears.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  const queries = spec.linears.find(({ name }) => name.endsWith('q_proj'))?.rows ?? 0
  return {
    // Attention: two products over the half of the scores that causality leaves.
    flop: 2 * tokens * products + 2 * tokens * (tokens + 1) * queries,
    run: () =>
      timed(device, async () => {
        const pass = architecture.forward(new Block(device, block, 0, tokens, tables), x)
        const output = await new BlockRun(device, new Block(device, block, 0, tokens, tables), pass).finish()
        output.dispose()
      }),
  }
}

/** The seconds of the operations that `body` enqueues. */
async function timed(device: Device, body: () => unknown): Promise<number> {
  await device.profile()
  const made: Tensor[] = []
  await device.within(made, body)
  for (const tensor of made) tensor.dispose()
  return Object.values(await device.profile()).reduce((a, b) => a + b, 0)
}

/** Uniform in [-scale, scale); the same every time. */
function random(device: Device, dtype: DType, shape: readonly number[], scale = 1): Tensor {
  const values = new Float32Array(shape.reduce((a, b) => a * b, 1))
  let state = 0x9e3779b9
  for (let i = 0; i < values.length; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    values[i] = state * scale * 2 ** -31
  }
  if (dtype === 'float32') return device.upload(values, shape)
  const uploaded = device.within([], () => device.upload(values, shape))
  const tensor = device.cast(uploaded, dtype)
  uploaded.dispose()
  return tensor
}
