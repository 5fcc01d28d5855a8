import type { PruningMethod } from './methods/names.js'
import type { DistillationProgress } from '../training/distillation.js'
import type { DistillationLosses } from '../training/saved-training.js'
import type { ReconstructionReport } from '../training/reconstruction.js'
import type { PhaseSeconds } from './phases.js'

/** What became of one linear layer. */
export interface LayerReport {
  /** The checkpoint name without '.weight', such as 'model.layers.0.self_attn.q_proj'. */
  name: string
  /** The number of output features. */
  rows: number
  /** The number of input features. */
  columns: number
  /** The share of zeros. */
  sparsity: number
  /** The share of zeros that the allocation asks for; absent with allocation 'uniform'. */
  target?: number
  /** The loss ½ tr(ΔW H ΔWᵀ) with H = 2 / samples · Σ x xᵀ, damped: the reference's "error"; null for magnitude, wanda and admm. */
  loss: number | null
  /**
   * The relative error of the layer's outputs, tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), with H = Σ x xᵀ, damped, and W the weights that bring the
   * outputs nearest to the target: the dense ones, or with target 'dense' those that make up for the layers before. Absent where
   * the method looks at no Gram matrix: magnitude and wanda without a fit.
   */
  error?: number
  /** The same before the kept weights were fitted; absent where they were not. */
  errorBefore?: number
  /** The iterations that fitting the kept weights took; 0 when they were not. */
  iterations?: number
  /** The solver's time; for the first layer of a group with the preparation (factorisation) that the group shares. */
  seconds: number
  /** What the dampening was raised to; absent when the Hessian could be factored with the one asked for. */
  dampening?: number
  /** How many tokens reached a routed expert, when these are fewer than its inputs: it was pruned for all experts' inputs. */
  fewTokens?: number
  /** What the reconstruction of the layer's block came to; with the option `reconstruct`. */
  reconstruction?: ReconstructionReport & { seconds: number }
  /** The number of inputs that were zero for every token, when there are some; their weights are pruned. */
  deadColumns?: number
}

/** The result of a pruning run. */
export interface PruneReport {
  /** The folder of the source model. */
  model: string
  /** The folder of the pruned model; null when it was pruned in memory only. */
  out: string | null
  /** The pruning method. */
  method: PruningMethod
  /** The shares of zeros over all pruned layers. */
  sparsity: { target: number; achieved: number }
  /** The share of zeros that the allocation asks for in each block, null where none of its layers is pruned; absent with allocation 'uniform'. */
  targets?: (number | null)[]
  /** What training the whole model came to, after each step of the schedule; with the option `distill`. */
  distillation?: DistillationLosses[]
  /** The time of the whole run. */
  seconds: number
  /** The peak of this process's resident memory since its start, in bytes. */
  peakRssBytes: number
  /** The number of ranks that have worked on the job, where it was several, and what has come to this one from the others, in bytes. */
  ranks?: { count: number; bytesReceived: number }
  /** Where the time went; with the option `profile`. */
  phases?: PhaseSeconds
  /** What became of each layer, in the order of the model. */
  layers: LayerReport[]
}

/** Where a pruning run stands. */
export interface PruneProgress {
  /**
   * What is under way. allocate: measuring how much the blocks can be pruned; collect: activations of the calibration text; solve:
   * pruning a layer; reconstruct: fitting the pruned block to the dense one; forward: the pruned block's outputs; distill: training
   * the whole model.
   */
  phase: 'allocate' | 'collect' | 'solve' | 'reconstruct' | 'forward' | 'distill'
  /** The number of the schedule's step, from 0. */
  scheduleStep: number
  /** The number of the schedule's steps; 1 without a schedule. */
  scheduleSteps: number
  /** The number of the block, from 0. */
  block: number
  /** The number of blocks to go through. */
  blocks: number
  /** The layer just pruned. */
  layer?: LayerReport
  /** Where the training of the whole model stands. */
  distillation?: DistillationProgress
  /** The share of the whole work that is done, in [0, 1]. */
  fraction: number
}
