import type { PhaseSeconds } from './phases.js'

/** What became of one linear layer. */
export interface LayerReport {
  /** Checkpoint name without '.weight', such as 'model.layers.0.self_attn.q_proj'. */
  name: string
  /** Output features. */
  rows: number
  /** Input features. */
  columns: number
  /** Share of zeros. */
  sparsity: number
  /** ½ tr(ΔW H ΔWᵀ) with H = 2 / samples · Σ x xᵀ, damped: the reference's "error"; null for magnitude and wanda. */
  loss: number | null
  /** Of the solver; for the first layer of a group with the factorisation that the group shares. */
  seconds: number
  /** Only when the Hessian could not be factored with the dampening asked for: what it was raised to. */
  dampening?: number
  /** Only of a routed expert that fewer tokens reached than it has inputs: how many. It was pruned for all experts' inputs. */
  fewTokens?: number
  /** Only when there are some: inputs that were zero for every token; their weights are pruned. */
  deadColumns?: number
}

/** The result of a pruning run, as `sparsegpt prune --json` prints it. */
export interface PruneReport {
  /** The folder of the source model. */
  model: string
  /** The folder of the pruned model; null when it was pruned in memory only. */
  out: string | null
  method: string
  /** Shares of zeros over all pruned layers. */
  sparsity: { target: number; achieved: number }
  seconds: number
  /** Of this process, since its start. */
  peakRssBytes: number
  /** With the option `profile`. */
  phases?: PhaseSeconds
  layers: LayerReport[]
}

/** Where a pruning run stands. */
export interface PruneProgress {
  /** collect: activations of the calibration text; solve: pruning a layer; forward: the pruned block's outputs. */
  phase: 'collect' | 'solve' | 'forward'
  /** From 0. */
  block: number
  blocks: number
  /** The layer just pruned. */
  layer?: LayerReport
  /** Share of the whole work done, in [0, 1]. */
  fraction: number
}
