import type { Activation, AttentionShape, Device, Tensor } from '../native/device.js'
import type { BlockPass, BlockStep, LinearGroup, StepResult } from './architecture.js'
import type { BlockWeights } from './weights.js'

/** cos and sin of every position's rotation angles, float32 [sequence, rotary dimensions / 2]. */
export interface RotaryTables {
  cosine: Tensor
  sine: Tensor
}

/** A part of a BlockPass. */
type Steps<Result> = Generator<BlockStep, Result, StepResult>

/**
 * The operations a block's forward pass is written in, with the block's weights at hand. Operations take over their operands
 * where the comment says "consumes", so that at every yield only what is still needed is in memory.
 */
export class Block {
  constructor(
    private readonly device: Device,
    private readonly weights: BlockWeights,
    readonly index: number,
    /** Tokens of each of the independent sequences that lie one after another in the activations. */
    readonly sequence: number,
    private readonly rotaryTables?: RotaryTables,
  ) {}

  layerNorm(x: Tensor, name: string, epsilon: number): Tensor {
    return this.device.layerNorm(x, this.weights.get(`${name}.weight`), this.weights.get(`${name}.bias`), epsilon)
  }

  rmsNorm(x: Tensor, name: string, epsilon: number): Tensor {
    return this.device.rmsNorm(x, this.weights.get(`${name}.weight`), epsilon)
  }

  /** The outputs of the named linear layers, which share `input`; consumes it. */
  *linears(input: Tensor, ...names: string[]): Steps<Tensor[]> {
    const outputs = (yield { names, input }) as Tensor[]
    input.dispose()
    return outputs
  }

  /** The output of one linear layer; consumes `input`. */
  *linear(input: Tensor, name: string): Steps<Tensor> {
    const [output] = yield* this.linears(input, name)
    return output as Tensor
  }

  /** The elements of a float32 tensor on the host, for decisions that depend on the data; consumes it. */
  *read(tensor: Tensor): Steps<Float32Array> {
    const elements = (yield { read: tensor }) as Float32Array
    tensor.dispose()
    return elements
  }

  /** In place: rotates the heads of q or k by their positions; pairs (i, i + pairs), or (2i, 2i + 1) when interleaved. */
  rotary(x: Tensor, headDim: number, interleaved = false): void {
    if (!this.rotaryTables) throw new TypeError('this model has no rotary tables')
    this.device.rotary(x, this.rotaryTables.cosine, this.rotaryTables.sine, headDim, interleaved)
  }

  /** Causal self-attention; consumes q, k and v. */
  attention(q: Tensor, k: Tensor, v: Tensor, shape: Omit<AttentionShape, 'sequence'>): Tensor {
    const out = this.device.attention(q, k, v, { ...shape, sequence: this.sequence })
    for (const tensor of [q, k, v]) tensor.dispose()
    return out
  }

  /** f(x), in place. */
  activation(x: Tensor, kind: Activation): Tensor {
    this.device.activation(x, kind)
    return x
  }

  /** f(gate) · up, in the place of gate; consumes up. */
  gated(gate: Tensor, up: Tensor, kind: Activation): Tensor {
    this.device.gate(gate, up, kind)
    up.dispose()
    return gate
  }

  /** x + y in the place of y; x stays as it is. */
  residual(x: Tensor, y: Tensor): Tensor {
    this.device.add(y, x)
    return y
  }

  /** A copy, for an input that is needed again after the linears have consumed it. */
  copy(x: Tensor): Tensor {
    return this.device.cast(x, x.dtype)
  }

  /** Columns [first, first + count) of x, sharing its memory. */
  columns(x: Tensor, first: number, count: number): Tensor {
    return x.columns(first, count)
  }

  /** Multiplies `input` with the weights of one linear layer. */
  apply(name: string, input: Tensor): Tensor {
    return this.device.linear(input, this.weights.get(`${name}.weight`), this.weights.find(`${name}.bias`))
  }
}

/**
 * One batch on its way through a block, stopping at every group of linears. It owns the tensors made on the way.
 */
export class BlockRun {
  private readonly made: Tensor[] = []
  private step: IteratorResult<BlockStep, Tensor> | undefined

  constructor(
    private readonly device: Device,
    private readonly block: Block,
    private readonly pass: BlockPass,
  ) {}

  /** Goes on to the next group; undefined at the end. Waits for the device only where the pass reads a tensor. */
  async advance(): Promise<LinearGroup | undefined> {
    const group = this.group()
    const outputs = () => group?.names.map((name) => this.block.apply(name, group.input)) ?? []
    this.step = this.device.within(this.made, () => this.pass.next(outputs()))
    while (!this.step.done && 'read' in this.step.value) {
      const elements = await this.device.readFloat32(this.step.value.read)
      this.step = this.device.within(this.made, () => this.pass.next(elements))
    }
    return this.group()
  }

  /** Runs to the end; the caller owns the block's output. */
  async finish(): Promise<Tensor> {
    while (!this.step?.done) await this.advance()
    const output = this.step.value
    this.dispose(output)
    return output
  }

  /** Disposes of all that was made except `kept`. */
  dispose(kept?: Tensor): void {
    for (const tensor of this.made) if (tensor !== kept) tensor.dispose()
    this.made.length = 0
  }

  private group(): LinearGroup | undefined {
    return this.step && !this.step.done && 'names' in this.step.value ? this.step.value : undefined
  }
}
