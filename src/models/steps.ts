import type { Tensor } from '../native/device.js'

/**
 * The linears that share one input, yielded by a block's forward pass where their outputs are needed. Who runs the pass decides
 * what happens there: collect statistics, prune, or just multiply.
 */
export interface LinearGroup {
  names: string[]
  /** The shared input, [tokens, columns]; of a routed expert possibly no tokens. */
  input: Tensor
  /**
   * The name of a pool of groups whose inputs are of one kind, such as those of a block's experts: statistics of the whole pool can
   * stand in for those of a group that saw too few tokens.
   */
  pool?: string
}

/** A place where a pass depends on data: the elements of a float32 tensor are wanted on the host. */
export interface HostRead {
  read: Tensor
}

export type BlockStep = LinearGroup | HostRead

/** The answer to a step: the outputs of a group's linears, or the elements of the tensor read. */
export type StepResult = Tensor[] | Float32Array

/** A part of a block's forward pass: it yields steps in order and receives their results. */
export type Steps<Result> = Generator<BlockStep, Result, StepResult>

/** A block's forward pass; it returns the block's output. */
export type BlockPass = Steps<Tensor>
