import type { MaskFile } from '../checkpoint/mask-file.js'
import { SparseGptError } from '../errors.js'
import type { LinearGroup, LinearSpec } from '../models/architecture.js'
import type { Batch, Model, Offload } from '../models/model.js'
import { storedShape, type BlockWeights } from '../models/weights.js'
import type { Selection, Tensor } from '../native/device.js'
import type { Pattern } from './options.js'
import type { ProgressMeter } from './progress.js'
import type { LayerReport } from './report.js'
import { prepareSolver, type Solver, type SolverOptions } from './solver.js'
import { Statistics, type GroupStatistics } from './statistics.js'

export interface BlockPrunerOptions extends SolverOptions {
  sparsity?: number | undefined
  pattern?: Pattern | undefined
  masks?: MaskFile | undefined
  /** Calibration windows in all. */
  samples: number
  sequential: 'block' | 'layer'
  offload?: Offload | undefined
  /** Takes the pruned matrix of the named weight, in its stored form; may share its memory but not change it. */
  store: (weightName: string, matrix: Tensor) => Promise<void>
  meter: ProgressMeter
}

/** Prunes one block: collects statistics of its inputs, solves its layers, replaces their weights. */
export class BlockPruner {
  private readonly statistics: Statistics | undefined
  private readonly reports: LayerReport[] = []

  constructor(
    private readonly model: Model,
    private readonly o: BlockPrunerOptions,
    private readonly index: number,
    private readonly weights: BlockWeights,
    /** Names below the block's prefix of the layers to prune. */
    private readonly selected: ReadonlySet<string>,
  ) {
    if (o.method !== 'magnitude') {
      this.statistics = new Statistics(model.device, o.method, 2 / o.samples, (name) => selected.has(name))
    }
  }

  /** `outputs`: whether the hidden states of `batches` are to become the pruned block's outputs. */
  async run(batches: readonly Batch[], { outputs }: { outputs: boolean }): Promise<LayerReport[]> {
    try {
      if (!this.statistics) {
        for (const name of this.selected) await this.solveGroup([name], undefined)
      } else if (this.o.sequential === 'layer') {
        await this.pruneLayerwise(this.statistics, batches, outputs)
      } else {
        await this.pruneBlockwise(this.statistics, batches, outputs)
      }
    } finally {
      this.statistics?.dispose()
    }
    return this.reports
  }

  /** The paper's way: all layers from the dense block's activations; then the block runs again. */
  private async pruneBlockwise(
    statistics: Statistics,
    batches: readonly Batch[],
    outputs: boolean,
  ): Promise<void> {
    const { model, index, weights } = this
    const collect = async (batch: Batch) => {
      const run = model.runBlock(index, weights, batch)
      const left = new Set(this.selected)
      try {
        // What follows the last layer to prune is computed again anyway.
        for (
          let group = await run.advance();
          group;
          group = left.size > 0 ? await run.advance() : undefined
        ) {
          statistics.add(group)
          for (const name of group.names) left.delete(name)
        }
      } finally {
        run.dispose()
      }
      this.o.offload?.(batch.hidden)
    }
    await model.paced(batches, collect, () => this.o.meter.batch('collect'))
    for (const group of statistics.takeAll()) await this.solveGroup(group.names, group)
    if (!outputs) return
    const step = () => this.o.meter.batch('forward')
    await model.passBlock(index, weights, batches, { step, offload: this.o.offload })
  }

  /** All batches advance from group to group together; each group is pruned before its outputs are computed. */
  private async pruneLayerwise(
    statistics: Statistics,
    batches: readonly Batch[],
    outputs: boolean,
  ): Promise<void> {
    const { model, index, weights } = this
    const left = new Set(this.selected)
    const passes = batches.map((batch) => ({
      batch,
      run: model.runBlock(index, weights, batch),
      group: undefined as LinearGroup | undefined,
    }))
    const advance = async (pass: (typeof passes)[number]) => {
      pass.group = await pass.run.advance()
      if (pass.group) statistics.add(pass.group)
      const { offload } = this.o
      if (!offload) return
      pass.run.offload(offload)
      offload(pass.batch.hidden)
    }
    try {
      await model.paced(passes, advance)
      while (left.size > 0 || outputs) {
        // Every batch passes through the same groups.
        const reached = passes[0]?.group
        if (!reached) break
        const group = statistics.take(reached)
        if (group) await this.solveGroup(group.names, group)
        for (const name of reached.names) left.delete(name)
        if (left.size > 0 || outputs) await model.paced(passes, advance)
      }
      for (const { batch, run } of passes) {
        if (outputs) {
          const output = await run.finish()
          batch.hidden.dispose()
          batch.hidden = output
          this.o.offload?.(output)
        }
        this.o.meter.batch('collect')
      }
    } finally {
      for (const { run } of passes) run.dispose()
    }
  }

  /** Prunes layers that share one input. */
  private async solveGroup(names: readonly string[], statistics: GroupStatistics | undefined): Promise<void> {
    const { device } = this.model
    const made: Tensor[] = statistics ? [statistics.sums] : []
    try {
      const solver = device.within(made, () => this.solver(statistics))
      let factorStats = solver.factor?.stats
      for (const name of names) {
        const layer = await this.solveLayer(name, solver, factorStats)
        factorStats = undefined // its time is counted once
        if (statistics?.pooled || statistics?.tokens === 0) layer.fewTokens = statistics.tokens
        this.reports.push(layer)
        this.o.meter.layer(layer)
      }
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /** An expert that no token has reached, nor any other of its kind before it, leaves only the weights to go by. */
  private solver(statistics: GroupStatistics | undefined): Solver {
    const { device } = this.model
    const unseen = statistics?.tokens === 0 && !statistics.pooled
    return prepareSolver(device, unseen ? { ...this.o, method: 'magnitude' } : this.o, statistics?.sums)
  }

  private async solveLayer(
    name: string,
    solver: Solver,
    factorStats: Tensor | undefined,
  ): Promise<LayerReport> {
    const { device, weights: all } = this.model
    const spec = this.weights.spec
    const linear = this.weights.linears.get(name) as LinearSpec
    const fullName = spec.prefix + name
    const made: Tensor[] = []
    try {
      const selection = await this.selection(`${fullName}.weight`, linear, made)
      const { weight, stats, result } = device.within(made, () => {
        const stored = all.storedLinear(spec, linear)
        const dense = this.dense(name, stored, linear)
        device.releasePages(stored)
        const { mask, stats: solved } = solver.prune(dense, selection)
        mask.dispose()
        return { weight: dense, stats: solved, result: all.toStored(dense, linear, stored.dtype) }
      })
      made.push(weight, result)
      const solved = [...(await device.read(stats))]
      const factor = factorStats ? [...(await device.read(factorStats))] : []
      await this.o.store(`${fullName}.weight`, result)
      // Later blocks see what is saved, rounded to the stored type.
      this.weights.set(`${name}.weight`, this.rounded(result, linear, weight))
      return layerReport(fullName, linear, solved, factor, this.o.dampening)
    } catch (error) {
      if (!(error instanceof SparseGptError) || error.code === 'ABORTED') throw error
      throw new SparseGptError(error.code, `${fullName}: ${error.message}`, { cause: error })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /** float32 [out, in], to be changed: the block's own matrix where nothing else has its memory. */
  private dense(name: string, stored: Tensor, linear: LinearSpec): Tensor {
    const { device, weights: all } = this.model
    const matrix = this.weights.get(`${name}.weight`)
    if (!all.isExact(stored)) return all.copy(stored, linear, 'float32')
    const own = matrix.dtype === 'float32' && !all.shares(stored, linear)
    return own ? matrix.rowRange(0, matrix.rows) : device.cast(matrix, 'float32')
  }

  /** The matrix for the forward pass from its stored form; `solved`, which was rounded to that, gives its memory if it fits. */
  private rounded(result: Tensor, linear: LinearSpec, solved: Tensor): Tensor {
    const { device, weights: all } = this.model
    if (all.dtype !== 'float32') {
      solved.dispose()
      return device.within([], () => all.matrix(result, linear))
    }
    if (result.dtype !== 'float32' || linear.layout === 'in-out') all.copy(result, linear, 'float32', solved)
    return solved.rowRange(0, solved.rows)
  }

  private async selection(weightName: string, linear: LinearSpec, made: Tensor[]): Promise<Selection> {
    const { sparsity, pattern, masks } = this.o
    if (!masks) return pattern ? { pattern } : { sparsity: sparsity ?? 0.5 }
    const { device } = this.model
    const shape = storedShape(linear)
    const bytes = await masks.read(weightName, shape)
    return device.within(made, () => {
      const mask = device.upload(bytes, shape)
      return { mask: linear.layout === 'in-out' ? device.transpose(mask, 'uint8') : mask }
    })
  }
}

function layerReport(
  name: string,
  { rows, columns }: LinearSpec,
  stats: readonly number[],
  factor: readonly number[],
  dampening: number,
): LayerReport {
  const [loss = NaN, zeros = 0, seconds = 0] = stats
  const [used = dampening, retries = 0, deadColumns = 0, factorSeconds = 0] = factor
  return {
    name,
    rows,
    columns,
    sparsity: zeros / (rows * columns),
    loss: Number.isNaN(loss) ? null : loss,
    seconds: seconds + factorSeconds,
    ...(retries > 0 ? { dampening: used } : {}),
    ...(deadColumns > 0 ? { deadColumns } : {}),
  }
}
