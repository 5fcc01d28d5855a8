/** The names of the pruning methods. */
export const methodNames = ['admm', 'magnitude', 'sparsegpt', 'wanda'] as const

/** The name of a pruning method. */
export type PruningMethod = (typeof methodNames)[number]

export const defaultMethod: PruningMethod = 'sparsegpt'

/** The options that methods have of their own. A method takes its own and leaves the others alone. */
export interface MethodOptions {
  /** The number of columns whose mask is chosen together (sparsegpt). Default 128. */
  blockSize?: number | undefined
  /**
   * What is added to the diagonal of the Hessian, as a share of its mean (sparsegpt), or of each entry (admm, and where weights are
   * fitted). Default 0.01; with a dense target 0.1 to fit weights.
   */
  dampening?: number | undefined
}
