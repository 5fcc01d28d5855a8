import { SparseGptError } from '../errors.js'
import type { Device, Tensor } from '../native/device.js'
import { LinearWeight } from './linear-weight.js'
import type { BlockSpec } from './specs.js'
import type { Weights } from './weights.js'

/** A block's weights on the device, by their names below the block's prefix. */
export class BlockWeights {
  private readonly linears = new Map<string, LinearWeight>()
  private readonly parameters = new Map<string, Tensor>()
  /** The stored tensors whose pages are given back with the block. */
  private readonly read: Tensor[] = []

  /** Loads a block; the caller disposes of it. Throws INVALID_CHECKPOINT, UNSUPPORTED_MODEL. */
  constructor(
    private readonly device: Device,
    private readonly weights: Weights,
    readonly spec: BlockSpec,
  ) {
    const { prefix } = spec
    const load = () => {
      for (const linear of spec.linears) {
        const weight = LinearWeight.load(device, weights, `${prefix}${linear.name}.weight`, linear)
        this.linears.set(linear.name, weight)
        if (!linear.bias) continue
        const bias = weights.float32(`${prefix}${linear.name}.bias`, [linear.rows])
        this.parameters.set(`${linear.name}.bias`, bias)
      }
      for (const { name, shape, offset } of spec.parameters) {
        this.parameters.set(name, weights.float32(prefix + name, shape, offset))
      }
    }
    weights.recording(this.read, () => device.within([], load))
  }

  linear(name: string): LinearWeight {
    return this.linears.get(name) ?? this.missing(name)
  }

  /** The bias of a linear layer, float32 [rows], or of a norm. */
  bias(name: string): Tensor | undefined {
    return this.parameters.get(`${name}.bias`)
  }

  /** A parameter of the block's spec, in float32. */
  parameter(name: string): Tensor {
    return this.parameters.get(name) ?? this.missing(name)
  }

  /** The names of the parameters that belong to norms; other vectors are sinks, or a router's. */
  get norms(): string[] {
    return this.spec.parameters.flatMap(({ name }) => (/norm|(^|\.)ln_/.test(name) ? [name] : []))
  }

  /**
   * Rounds a parameter or a bias that has been trained to what can be stored, and returns that in its stored form; the caller
   * disposes of it.
   */
  settleParameter(name: string): Tensor {
    const { device, weights, spec } = this
    const value = this.parameter(name)
    const offset = spec.parameters.find((parameter) => parameter.name === name)?.offset ?? 0
    const source = weights.stored(spec.prefix + name, value.shape)
    const { dtype } = source
    source.dispose()
    weights.shift(value, -offset)
    const stored = device.cast(value, dtype)
    device.cast(stored, 'float32', value)
    weights.shift(value, offset)
    return stored
  }

  dispose(): void {
    for (const weight of this.linears.values()) weight.dispose()
    for (const tensor of this.parameters.values()) tensor.dispose()
    this.weights.giveBack(this.read)
  }

  private missing(name: string): never {
    throw new SparseGptError('INTERNAL', `the block ${this.spec.prefix} has no weight ${name}`)
  }
}
