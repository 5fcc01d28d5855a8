import type { Activation, AttentionShape, Device, DType, Tensor } from '../native/device.js'
import type { BlockPass, BlockStep, LinearGroup, StepResult } from './architecture.js'
import type { BlockWeights } from './weights.js'

/** cos and sin of every position's rotation angles, float32 [sequence, rotary dimensions / 2]. */
export interface RotaryTables {
  cosine: Tensor
  sine: Tensor
}

/** A part of a BlockPass. */
export type Steps<Result> = Generator<BlockStep, Result, StepResult>

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

  /** In place: layer norm of each head. */
  layerNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void {
    const [weight, bias] = [this.weights.get(`${name}.weight`), this.weights.get(`${name}.bias`)]
    const heads = x.reshape([(x.rows * x.width) / headDim, headDim])
    this.device.layerNorm(heads, weight, bias, epsilon, heads)
    heads.dispose()
  }

  /** In place: RMS norm of each head. */
  rmsNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void {
    const heads = x.reshape([(x.rows * x.width) / headDim, headDim])
    this.device.rmsNorm(heads, this.weights.get(`${name}.weight`), epsilon, heads)
    heads.dispose()
  }

  /** The outputs of the named linear layers, which share `input`; consumes it. */
  *linears(input: Tensor, ...names: string[]): Steps<Tensor[]> {
    const outputs = (yield { names, input }) as Tensor[]
    input.dispose()
    return outputs
  }

  /** As `linears`, for one of several groups whose inputs are of one kind: see LinearGroup.pool. */
  *pooledLinears(pool: string, input: Tensor, ...names: string[]): Steps<Tensor[]> {
    const outputs = (yield { names, input, pool }) as Tensor[]
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

  /** x + attention + mlp in the place of mlp, for sublayers side by side; consumes attention, x stays as it is. */
  parallelResidual(x: Tensor, attention: Tensor, mlp: Tensor): Tensor {
    this.device.add(mlp, attention)
    attention.dispose()
    return this.residual(x, mlp)
  }

  /** A copy, for an input that is needed again after the linears have consumed it. */
  copy(x: Tensor): Tensor {
    return this.device.cast(x, x.dtype)
  }

  /** Columns [first, first + count) of x, sharing its memory. */
  columns(x: Tensor, first: number, count: number): Tensor {
    return x.columns(first, count)
  }

  /**
   * q, k and v of a fused projection whose columns are, for each key/value head in turn: its query heads, its key, its value.
   * Consumes it.
   */
  splitHeads(fused: Tensor, heads: number, kvHeads: number, headDim: number): [q: Tensor, k: Tensor, v: Tensor] {
    const queries = (heads / kvHeads) * headDim
    const part = (first: number, count: number) =>
      this.device.takeColumns(fused, { groups: kvHeads, first, count, stride: queries + 2 * headDim })
    const parts = [part(0, queries), part(queries, headDim), part(queries + headDim, headDim)] as const
    fused.dispose()
    return [...parts]
  }

  /** x times a parameter that is a matrix [out, in], in float32. */
  product(x: Tensor, name: string): Tensor {
    return this.device.linear(x, this.weights.get(`${name}.weight`), undefined, 'float32')
  }

  /** [ids, columns of x]: the rows of x that `ids` names. */
  rows(x: Tensor, ids: Tensor): Tensor {
    return this.device.embedding(x, ids, x.dtype)
  }

  /** float32 [rows, width], all 0: for sums of addRows. */
  zeros(rows: number, width: number): Tensor {
    return this.device.zeros('float32', [rows, width])
  }

  /** sums[ids[t]] += factors[t] · x[t]; no id occurs twice. Consumes x. */
  addRows(sums: Tensor, x: Tensor, ids: Tensor, factors: Tensor): void {
    this.device.scatterAdd(sums, x, ids, factors)
    x.dispose()
  }

  /** x in another element type; consumes it. */
  cast(x: Tensor, dtype: DType): Tensor {
    const out = this.device.cast(x, dtype)
    x.dispose()
    return out
  }

  upload(array: Float32Array | Int32Array): Tensor {
    return this.device.upload(array, [array.length])
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

  /** Moves what waits for the next step out of the device's memory. */
  offload(move: (tensor: Tensor) => void): void {
    for (const tensor of this.made) move(tensor)
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
