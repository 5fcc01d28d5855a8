import type { Activation, Device, Tensor } from '../native/device.js'
import type { Block } from './block.js'
import type { Rotary } from './rotary.js'
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

/** A parameter that is used in float32. */
export interface ParameterSpec {
  /** Below the block's prefix, such as 'input_layernorm.weight'. */
  name: string
  shape: readonly number[]
  /** What the checkpoint stores is the parameter minus this. Default 0. */
  offset?: number
}

/** What a decoder block holds. */
export interface BlockSpec {
  /** Of all its checkpoint names, such as 'model.layers.3.'. */
  prefix: string
  linears: LinearSpec[]
  /** What is never pruned: norms, an expert router. */
  parameters: ParameterSpec[]
}

/**
 * The linears that share one input, yielded by a block's forward pass where their outputs are needed. Who runs the pass decides
 * what happens there: collect statistics, prune, or just multiply.
 */
export interface LinearGroup {
  names: string[]
  /** [tokens, columns]; of a routed expert possibly no tokens. */
  input: Tensor
  /**
   * The same for the groups of a block whose inputs are of one kind, such as those of its experts: statistics of the whole pool
   * can stand in for those of a group that saw too few tokens.
   */
  pool?: string
}

/** Where a pass depends on data: the elements of a float32 tensor are wanted on the host. */
export interface HostRead {
  read: Tensor
}

export type BlockStep = LinearGroup | HostRead

/** The answer to a step: the outputs of a group's linears, or the elements of the tensor read. */
export type StepResult = Tensor[] | Float32Array

/** A block's forward pass: yields steps in order, receives their results, returns the block's output. */
export type BlockPass = Generator<BlockStep, Tensor, StepResult>

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
  /** Of models with rotary positions. */
  rotary?: Rotary
  block(index: number): BlockSpec
  /** [tokens, hidden] of token ids, int32 [sequences · sequence]. */
  embed(weights: Weights, device: Device, ids: Tensor, sequence: number): Tensor
  /** The pass leaves `x` as it is. */
  forward(block: Block, x: Tensor): BlockPass
  /** What the head reads: the final norm and projection. */
  finish(weights: Weights, device: Device, x: Tensor): Tensor
  /** [vocabulary, columns of finish()], as stored. */
  head(weights: Weights): Tensor
  /** [vocabulary], added to the logits. */
  headBias?(weights: Weights): Tensor
  /** The logits are capped to softcap · tanh(logit / softcap). */
  logitSoftcap?: number
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
