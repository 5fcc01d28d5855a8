import type { Activation, AttentionShape, Device, DType, Tensor } from '../native/device.js'
import type { AttentionHeads, Block } from './block.js'
import type { BlockWeights } from './block-weights.js'
import { route, type ExpertLoad, type HostLoad, type Routing } from './routing.js'
import type { Sequences } from './sequences.js'
import type { Steps } from './steps.js'

/** The angles of rotary positions, float32 [positions, pairs]. */
export interface RotaryTables {
  cosine: Tensor
  sine: Tensor
}

/** Where the tokens of a pass stand. */
export interface Placement {
  sequences: Sequences
  /** The position of every token, int32 [tokens]. */
  positions: Tensor
  rotary?: RotaryTables | undefined
}

/** A block whose operations are enqueued on the device as they are called. */
export class EagerBlock implements Block {
  constructor(
    protected readonly device: Device,
    protected readonly weights: BlockWeights,
    readonly index: number,
    /** Undefined behind the last block, where it does not matter. */
    private readonly placement?: Placement,
  ) {}

  protected get placed(): Placement {
    if (!this.placement) throw new TypeError('behind the last block tokens have no positions')
    return this.placement
  }

  apply(name: string, input: Tensor): Tensor {
    return this.device.linear(input, this.weights.linear(name).matrix, this.weights.bias(name))
  }

  layerNorm(x: Tensor, name: string, epsilon: number): Tensor {
    return this.device.layerNorm(x, ...this.norm(name), epsilon)
  }

  rmsNorm(x: Tensor, name: string, epsilon: number): Tensor {
    return this.device.rmsNorm(x, this.weights.parameter(`${name}.weight`), epsilon)
  }

  layerNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void {
    const heads = x.reshape([(x.rows * x.width) / headDim, headDim])
    this.device.layerNorm(heads, ...this.norm(name), epsilon, heads)
    heads.dispose()
  }

  rmsNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void {
    const heads = x.reshape([(x.rows * x.width) / headDim, headDim])
    this.device.rmsNorm(heads, this.weights.parameter(`${name}.weight`), epsilon, heads)
    heads.dispose()
  }

  private norm(name: string): [weight: Tensor, bias: Tensor] {
    const weight = this.weights.parameter(`${name}.weight`)
    return [weight, this.weights.bias(name) ?? this.device.zeros('float32', weight.shape)]
  }

  *linears(input: Tensor, ...names: string[]): Steps<Tensor[]> {
    const outputs = (yield { names, input }) as Tensor[]
    input.dispose()
    return outputs
  }

  *pooledLinears(pool: string, input: Tensor, ...names: string[]): Steps<Tensor[]> {
    const outputs = (yield { names, input, pool }) as Tensor[]
    input.dispose()
    return outputs
  }

  *linear(input: Tensor, name: string): Steps<Tensor> {
    const [output] = yield* this.linears(input, name)
    return output as Tensor
  }

  product(x: Tensor, name: string, dtype: DType = 'float32'): Tensor {
    return this.device.linear(x, this.weights.parameter(`${name}.weight`), this.weights.bias(name), dtype)
  }

  *route(scores: Tensor, routing: Routing, preference?: string): Steps<ExpertLoad[]> {
    const { elements, preferences } = yield* this.routed(scores, preference)
    scores.dispose()
    return this.loads(route(elements, routing, preferences))
  }

  /** What a router says, on the host. */
  protected *routed(
    scores: Tensor,
    preference?: string,
  ): Steps<{ elements: Float32Array; preferences: Float32Array | undefined }> {
    const elements = (yield { read: scores }) as Float32Array
    const read = preference === undefined ? undefined : this.weights.parameter(preference)
    return { elements, preferences: read && ((yield { read }) as Float32Array) }
  }

  protected loads(loads: readonly HostLoad[]): ExpertLoad[] {
    return loads.map(({ tokens, shares }) => ({ tokens: this.upload(tokens), shares: this.upload(shares) }))
  }

  rotary(x: Tensor, headDim: number, interleaved = false): void {
    const { rotary, positions } = this.placed
    if (!rotary) throw new TypeError('this model has no rotary positions')
    this.device.rotary(x, rotary, positions, headDim, interleaved)
  }

  attention(q: Tensor, k: Tensor, v: Tensor, heads: AttentionHeads): Tensor {
    const out = this.device.attention(q, k, v, this.attentionShape(heads))
    for (const tensor of [q, k, v]) tensor.dispose()
    return out
  }

  protected attentionShape({ sinks, ...heads }: AttentionHeads): AttentionShape {
    return {
      ...heads,
      sinks: sinks === undefined ? undefined : this.weights.parameter(sinks),
      window: this.weights.spec.window,
      sequences: this.placed.sequences.count,
    }
  }

  activation(x: Tensor, kind: Activation): Tensor {
    this.device.activate(x, kind)
    return x
  }

  gated(gate: Tensor, up: Tensor, kind: Activation): Tensor {
    this.device.gate(gate, up, kind)
    up.dispose()
    return gate
  }

  scale(x: Tensor, factor: number): Tensor {
    this.device.scale(x, factor)
    return x
  }

  residual(x: Tensor, y: Tensor): Tensor {
    this.device.add(y, x)
    return y
  }

  parallelResidual(x: Tensor, attention: Tensor, mlp: Tensor): Tensor {
    this.device.add(mlp, attention)
    attention.dispose()
    return this.residual(x, mlp)
  }

  copy(x: Tensor): Tensor {
    return this.device.cast(x, x.dtype)
  }

  cast(x: Tensor, dtype: DType): Tensor {
    const out = this.device.cast(x, dtype)
    x.dispose()
    return out
  }

  splitColumns(fused: Tensor, ...counts: number[]): Tensor[] {
    let first = 0
    const parts = counts.map((count) => {
      first += count
      return this.device.adopt(fused.columns(first - count, count))
    })
    fused.dispose()
    return parts
  }

  drop(x: Tensor): void {
    x.dispose()
  }

  splitGroups(fused: Tensor, groups: number, ...counts: number[]): Tensor[] {
    const parts = groupColumns(counts).map((part) => this.device.takeColumns(fused, { groups, ...part }))
    fused.dispose()
    return parts
  }

  joinGroups(groups: number, ...parts: Tensor[]): Tensor {
    const { rows, dtype } = parts[0]!
    const places = groupColumns(parts.map(({ width }) => width / groups))
    const out = this.device.empty(dtype, [rows, groups * places[0]!.stride])
    parts.forEach((part, i) => {
      this.device.putColumns(out, part, places[i]!)
      part.dispose()
    })
    return out
  }

  repeatColumns(x: Tensor, times: number): Tensor {
    const out = this.device.takeColumns(x, { groups: times, first: 0, count: x.width, stride: 0 })
    x.dispose()
    return out
  }

  rows(x: Tensor, ids: Tensor): Tensor {
    return this.device.embedding(x, ids, x.dtype)
  }

  zeros(rows: number, width: number, dtype: DType = 'float32'): Tensor {
    const zeros = this.device.zeros('float32', [rows, width])
    if (dtype === 'float32') return zeros
    const out = this.device.cast(zeros, dtype)
    zeros.dispose()
    return out
  }

  addRows(sums: Tensor, x: Tensor, ids: Tensor, factors: Tensor): void {
    this.device.scatterAdd(sums, x, ids, factors)
    x.dispose()
  }

  upload(array: Float32Array | Int32Array): Tensor {
    return this.device.upload(array, [array.length])
  }
}

/** Where parts of so many columns lie in each group of columns: see Block.splitGroups. */
export function groupColumns(counts: readonly number[]): { first: number; count: number; stride: number }[] {
  const stride = counts.reduce((a, b) => a + b, 0)
  let end = 0
  return counts.map((count) => {
    end += count
    return { first: end - count, count, stride }
  })
}
