import type * as z from 'zod'
import type { Choice, Device, Tensor } from '../../native/device.js'
import type { Rounding } from '../../native/operations.js'
import type { Statistic } from '../statistic.js'

/** Which weights of a matrix go: those of the mask, else by the choice. */
export interface Selection extends Choice {
  /** The mask of what is to go, uint8 [rows, columns], 1 = prune. */
  given?: Tensor | undefined
  /** The type that the steps of grids are rounded to, where the kept weights are; default 'float32'. */
  stepType?: Rounding['stepType'] | undefined
}

/** The grids that weights were rounded to, for each row and group: step · (code - zero). */
export interface Grids {
  bits: number
  /** [rows, groups], of the selection's stepType. */
  steps: Tensor
  /** float32 [rows, groups]. */
  zeros: Tensor
}

/** What became of a matrix. */
export interface Pruned {
  /** The mask of what has gone, uint8 [rows, columns], 1 = pruned. */
  mask: Tensor
  /** The loss ½ tr(ΔW H ΔWᵀ), float64 [1]; absent where the method does not know it. */
  loss?: Tensor
  /** What the kept weights were rounded to; absent where they were not. */
  grids?: Grids | undefined
}

/** What the preparation for one input did. */
export interface Preparation {
  /** The dampening of the Hessian, as a share of its mean diagonal. */
  dampening: number
  /** How often it was raised because the Hessian could not be factored. */
  retries: number
  /** The number of inputs that were zero for every token. */
  deadColumns: number
}

/** How kept weights are rounded, as the options say. */
export type RoundingOptions = {
  /** The number of bits; undefined: not rounded. */
  bits?: number | undefined
  groupSize?: number | undefined
  symmetric?: boolean | undefined
  clip?: boolean | undefined
}

/** Prunes the matrices that share one input. */
export interface Solver {
  /** Enqueues the pruning of `weight`, float32 [rows, columns], in place. */
  prune(weight: Tensor, selection: Selection): Pruned
  /**
   * Enqueues ½ tr(W H Wᵀ) of a matrix before it is pruned, of which the loss is a share, and resolves to it; absent where the loss is
   * not known.
   */
  energy?(weight: Tensor): Promise<number>
  /** Waits for the preparation and tells what it did; absent where there is nothing to tell. */
  preparation?(): Promise<Preparation>
}

/**
 * A pruning method. One file each, which ends with `satisfies Method`, or declares a `Method<typeof options>` where it has options
 * of its own; registry.ts lists them.
 */
export interface Method<Options extends z.ZodRawShape = z.ZodRawShape> {
  /** The name in options, such as 'sparsegpt'. */
  name: string
  /** What it needs to know of a layer's inputs; undefined for nothing. */
  statistic: Statistic | undefined
  /** Whether it can round the kept weights, too (option `bits`), and make up for that. */
  rounds: boolean
  /** Whether it only chooses what goes, so that the kept weights are always fitted afterwards (option `refit`). */
  refits?: boolean
  /** Whether what becomes of a row depends on nothing but that row and the inputs. */
  rowsApart(selection: { given?: unknown; pattern?: unknown }): boolean
  /** The options of its own, as zod validates them. */
  options: Options
  /**
   * Prepares for one input. `sum`: the statistic's, which it may overwrite; undefined where the method has none. Tensors that it
   * makes go into the device's scope.
   */
  prepare(
    device: Device,
    options: z.output<z.ZodObject<Options>> & RoundingOptions,
    sum: Tensor | undefined,
  ): Solver
}
