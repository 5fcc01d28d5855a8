import type { Device, Tensor } from '../native/device.js'
import type { Block } from './block.js'
import type { Rotary } from './rotary.js'
import type { BlockSpec } from './specs.js'
import type { BlockPass } from './steps.js'
import type { Weights } from './weights.js'

/**
 * A model of some family at some size: which weights it has and which operations run in which order. It knows tensors and
 * operations, not backends or file formats.
 */
export interface Architecture {
  hiddenSize: number
  /** The width of a block's widest activation; it sizes batches. */
  widestActivation: number
  vocabularySize: number
  /** The number of tokens of the longest sequence that the model has positions for. */
  contextLength: number
  blockCount: number
  /** How positions rotate queries and keys, in models that have rotary positions; of each block, where blocks differ. */
  rotary?: Rotary | ((block: number) => Rotary)
  block(index: number): BlockSpec
  /** The hidden states [tokens, hidden] of token ids at their positions, both int32 [tokens]. */
  embed(weights: Weights, device: Device, ids: Tensor, positions: Tensor): Tensor
  /** Starts the forward pass of a block; it leaves `x` as it is. */
  forward(block: Block, x: Tensor): BlockPass
  /** The parameters between the last block and the head. */
  final: BlockSpec
  /**
   * What the head reads, [tokens, columns of the head]: the final norm, and a projection where there is one. `block` has
   * `final`'s parameters. It leaves x as it is.
   */
  finish(block: Block, x: Tensor): Tensor
  /** The output head, [vocabulary, columns of finish()], as stored. */
  head(weights: Weights): Tensor
  /** The bias of the logits, [vocabulary]. */
  headBias?(weights: Weights): Tensor
  /** The logits are capped to softcap · tanh(logit / softcap). */
  logitSoftcap?: number
}
