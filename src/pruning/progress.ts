import { abortable } from '../abort.js'
import type { Architecture, LinearSpec } from '../models/architecture.js'
import type { LayerReport, PruneProgress } from './report.js'

/** Multiply-adds of the linears for one token. */
const perToken = (linears: readonly LinearSpec[]) =>
  linears.reduce((sum, { rows, columns }) => sum + rows * columns, 0)

/**
 * Counts the work done in units of arithmetic, so that a fraction is a share of the time. The costs are estimates (attention
 * is left out, a Gram matrix is counted once per width), the same in every block, so that what they miss evens out.
 */
export class ProgressMeter {
  block = 0
  private done = 0
  private readonly total: number
  private readonly costs: { collect: number; forward: number; solve: Map<string, number> }[]

  constructor(
    architecture: Architecture,
    private readonly layers: readonly { name: string; rows: number; columns: number }[][],
    batches: readonly number[],
    private readonly sequential: 'block' | 'layer',
    private readonly onProgress: ((progress: PruneProgress) => void) | undefined,
    private readonly signal: AbortSignal | undefined,
  ) {
    const last = layers.findLastIndex((block) => block.length > 0)
    const tokens = batches.reduce((a, b) => a + b, 0) / Math.max(1, batches.length)
    this.costs = layers.slice(0, last + 1).map((selected, index) => {
      const forward = tokens * perToken(architecture.block(index).linears)
      const widths = new Set(selected.map(({ columns }) => columns))
      const gram = [...widths].reduce((sum, columns) => sum + (tokens * columns ** 2) / 2, 0)
      const solve = selected.map(({ name, rows, columns }): [string, number] => [
        name,
        (columns / 6 + rows / 2) * columns ** 2,
      ])
      return { collect: forward + gram, forward, solve: new Map(solve) }
    })
    this.total = this.costs.reduce((sum, { collect, forward, solve }, index) => {
      const solving = [...solve.values()].reduce((a, b) => a + b, 0)
      const passes = (solve.size > 0 ? collect : 0) + (this.passesAgain(index) ? forward : 0)
      return sum + solving + passes * batches.length
    }, 0)
  }

  /** A batch has gone through the block. */
  batch(phase: 'collect' | 'forward'): void {
    this.advance(phase, this.costs[this.block]?.[phase] ?? 0)
  }

  layer(layer: LayerReport): void {
    this.advance('solve', this.costs[this.block]?.solve.get(layer.name) ?? 0, layer)
  }

  private passesAgain(index: number): boolean {
    const selected = this.layers[index]?.length ?? 0
    return selected === 0 || (this.sequential === 'block' && index < this.costs.length - 1)
  }

  private advance(phase: PruneProgress['phase'], cost: number, layer?: LayerReport): void {
    this.done += cost
    const fraction = this.total > 0 ? Math.min(1, this.done / this.total) : 0
    const blocks = this.costs.length
    this.onProgress?.({ phase, block: this.block, blocks, fraction, ...(layer ? { layer } : {}) })
    abortable(this.signal)
  }
}
