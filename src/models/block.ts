import type { Activation, AttentionShape, DType, Tensor } from '../native/device.js'
import type { ExpertLoad, Routing } from './routing.js'
import type { Steps } from './steps.js'

/** What a family's forward pass says of its attention; sequences, positions and the window are the block's. */
export interface AttentionHeads extends Omit<AttentionShape, 'sequences' | 'start' | 'window' | 'sinks'> {
  /** The parameter, [heads], that has the heads' sinks, if they have some. */
  sinks?: string | undefined
}

/**
 * The operations that a block's forward pass is written in, with the block's weights at hand. An operation consumes an operand
 * where its comment says so, so that at every yield only what is still needed is in memory.
 */
export interface Block {
  /** The number of the block, from 0. */
  readonly index: number

  /** Multiplies `input`, [tokens, in], with one linear layer, bias included: the answer to a group that a pass has yielded. */
  apply(name: string, input: Tensor): Tensor

  /** The layer norm; without a bias where the block has no parameter `name`.bias. */
  layerNorm(x: Tensor, name: string, epsilon: number): Tensor
  rmsNorm(x: Tensor, name: string, epsilon: number): Tensor
  /** The layer norm of each head, in place. */
  layerNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void
  /** The root-mean-square norm of each head, in place. */
  rmsNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void

  /** The outputs of the named linear layers, which share `input`; consumes it. */
  linears(input: Tensor, ...names: string[]): Steps<Tensor[]>
  /** The outputs of one of several groups whose inputs are of one kind: see LinearGroup.pool. Consumes the input. */
  pooledLinears(pool: string, input: Tensor, ...names: string[]): Steps<Tensor[]>
  /** The output of one linear layer; consumes `input`. */
  linear(input: Tensor, name: string): Steps<Tensor>
  /** The product of x with a parameter that is a matrix [out, in], plus its bias if it has one; in float32 if not said otherwise. */
  product(x: Tensor, name: string, dtype?: DType): Tensor
  /**
   * What every expert is to work on, by a router's scores, float32 [tokens, experts]; consumes them. The parameter `preference`,
   * [experts], says how much each expert is preferred, where the router has that.
   */
  route(scores: Tensor, routing: Routing, preference?: string): Steps<ExpertLoad[]>

  /** Rotates the heads of q or k by their positions, in place; pairs (i, i + pairs), or (2i, 2i + 1) when interleaved. */
  rotary(x: Tensor, headDim: number, interleaved?: boolean): void
  /** Causal self-attention of every sequence; consumes q, k and v. */
  attention(q: Tensor, k: Tensor, v: Tensor, heads: AttentionHeads): Tensor
  /** Replaces x by f(x). */
  activation(x: Tensor, kind: Activation): Tensor
  /** Replaces gate by f(gate) · up; consumes up. */
  gated(gate: Tensor, up: Tensor, kind: Activation): Tensor
  /** Replaces x by factor · x. */
  scale(x: Tensor, factor: number): Tensor
  /** Replaces y by x + y; x stays as it is. */
  residual(x: Tensor, y: Tensor): Tensor
  /** Replaces mlp by x + attention + mlp, for sublayers side by side; consumes attention, x stays as it is. */
  parallelResidual(x: Tensor, attention: Tensor, mlp: Tensor): Tensor

  /** A copy, for an input that is needed again after the linears have consumed it. */
  copy(x: Tensor): Tensor
  /** Converts x to another element type; consumes it. */
  cast(x: Tensor, dtype: DType): Tensor
  /** The parts of a fused projection that lie one after another, of so many columns; they share its memory. Consumes it. */
  splitColumns(fused: Tensor, ...counts: number[]): Tensor[]
  /** Frees what no operation has consumed. */
  drop(x: Tensor): void
  /**
   * The parts of a fused projection whose columns are, for each of so many groups in turn, parts of `counts` columns: each
   * [tokens, groups · count]. Consumes it.
   */
  splitGroups(fused: Tensor, groups: number, ...counts: number[]): Tensor[]
  /** Undoes splitGroups(): the columns of each group of the parts side by side; consumes them. */
  joinGroups(groups: number, ...parts: Tensor[]): Tensor
  /** x side by side so many times, [tokens, times · columns]; consumes it. */
  repeatColumns(x: Tensor, times: number): Tensor
  /** The rows of x that `ids` names, [ids, columns of x]. */
  rows(x: Tensor, ids: Tensor): Tensor
  /** Zeros, float32 [rows, width] if not said otherwise: for sums of addRows. */
  zeros(rows: number, width: number, dtype?: DType): Tensor
  /** Adds rows to sums: sums[ids[t]] += factors[t] · x[t]; no id occurs twice. Consumes x. */
  addRows(sums: Tensor, x: Tensor, ids: Tensor, factors: Tensor): void
  /** The numbers as a vector on the device. They do not depend on where the tokens stand: a pass may be repeated with them. */
  upload(array: Float32Array | Int32Array): Tensor
}
