import type { Activation, Device, Tensor } from '../native/device.js'
import type { Block } from './block.js'
import type { Weights } from './weights.js'

/** A linear layer of a block, by its checkpoint name without '.weight'. */
export interface LinearSpec {
  /** Below the block's prefix, such as 'self_attn.q_proj'. */
  name: string
  /** Output features. */
  rows: number
  /** Input features. */
  columns: number
  bias: boolean
  /** How the checkpoint stores the matrix; 'in-out' is the transposed layout of GPT-2's Conv1D. Default 'out-in'. */
  layout?: 'out-in' | 'in-out'
}

/** What a decoder block holds. */
export interface BlockSpec {
  /** Of all its checkpoint names, such as 'model.layers.3.'. */
  prefix: string
  linears: LinearSpec[]
  /** Other parameters (norms), by name below the prefix. */
  vectors: { name: string; size: number }[]
}

/**
 * The linears that share one input, yielded by a block's forward pass where their outputs are needed. Who runs the pass decides
 * what happens there: collect statistics, prune, or just multiply.
 */
export interface LinearGroup {
  names: string[]
  /** [tokens, columns]. */
  input: Tensor
}

/** A block's forward pass: yields each group of linears in order, receives their outputs, returns the block's output. */
export type BlockPass = Generator<LinearGroup, Tensor, Tensor[]>

/**
 * A model of some family at some size: which weights it has and which operations run in which order. It knows tensors and
 * operations, not backends or file formats.
 */
export interface Architecture {
  hiddenSize: number
  /** The widest activation of a block per token; sizes batches. */
  widestActivation: number
  vocabularySize: number
  /** Longest sequence the model has positions for. */
  contextLength: number
  blockCount: number
  block(index: number): BlockSpec
  /** [tokens, hidden] of token ids, int32 [sequences · sequence]. */
  embed(weights: Weights, device: Device, ids: Tensor, sequence: number): Tensor
  /** The pass leaves `x` as it is. */
  forward(block: Block, x: Tensor): BlockPass
  /** What the head reads: the final norm and projection. */
  finish(weights: Weights, device: Device, x: Tensor): Tensor
  /** [vocabulary, columns of finish()], as stored. */
  head(weights: Weights): Tensor
}

/** The names that config.json uses for activation functions. */
export const activationNames: Record<string, Activation> = {
  relu: 'relu',
  gelu: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  silu: 'silu',
  swish: 'silu',
}
