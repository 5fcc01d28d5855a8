import type { Device, Factor, Pruned, Selection, Tensor } from '../native/device.js'
import type { PruningMethod } from './options.js'

/** Prunes the matrices that share one input. */
export interface Solver {
  /** Of the Hessian (sparsegpt). */
  factor?: Factor
  /** Enqueues the pruning of `weight`, float32 [rows, columns], in place. */
  prune(weight: Tensor, selection: Selection): Pruned
}

export interface SolverOptions {
  method: PruningMethod
  blockSize: number
  dampening: number
  bits?: number | undefined
}

/**
 * The method's solver for one input. `sums`: for sparsegpt the Gram matrix, which is factored in its place; for wanda the sums
 * of squares; for magnitude nothing.
 */
export function prepareSolver(device: Device, o: SolverOptions, sums: Tensor | undefined): Solver {
  if (o.method === 'magnitude' || !sums) {
    return { prune: (weight, selection) => device.pruneMagnitude(weight, selection) }
  }
  if (o.method === 'wanda') {
    return { prune: (weight, selection) => device.pruneWanda(weight, sums, selection) }
  }
  const factor = device.factorHessian(sums, o.dampening)
  const options = { blockSize: o.blockSize, bits: o.bits ?? 0 }
  return { factor, prune: (weight, selection) => device.pruneSparsegpt(weight, factor, selection, options) }
}
