import { SparseGptError } from '../errors.js'
import type { MaskFile } from '../files/mask-file.js'
import type { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine, Offload } from '../models/engine.js'
import type { LinearWeight } from '../models/linear-weight.js'
import { storedShape } from '../models/specs.js'
import type { LinearGroup } from '../models/steps.js'
import type { Tensor } from '../native/device.js'
import type { Destination } from './destination.js'
import { solveLayer, Stopwatch, type SolvedLayer } from './layer-solver.js'
import type { Method, Preparation, Selection, Solver } from './methods/method.js'
import { withoutInputs } from './methods/methods.js'
import type { Pattern } from './options.js'
import type { ProgressMeter } from './progress.js'
import type { LayerReport } from './report.js'
import { Statistics, type GroupStatistics } from './statistics.js'

export interface BlockPrunerOptions {
  method: Method
  /** The options as parsed, the method's among them. */
  settings: Record<string, unknown>
  sparsity?: number | undefined
  pattern?: Pattern | undefined
  masks?: MaskFile | undefined
  /** The number of calibration windows in all. */
  samples: number
  sequential: 'block' | 'layer'
  offload?: Offload | undefined
  destination: Pick<Destination, 'store' | 'usesMask'>
  meter: ProgressMeter
}

/** Prunes one block: collects statistics of its inputs, solves its layers, replaces their weights. */
export class BlockPruner {
  private readonly statistics: Statistics | undefined
  private readonly reports: LayerReport[] = []

  constructor(
    private readonly engine: Engine,
    private readonly o: BlockPrunerOptions,
    private readonly index: number,
    private readonly weights: BlockWeights,
    /** The names below the block's prefix of the layers to prune. */
    private readonly selected: ReadonlySet<string>,
  ) {
    const { statistic } = o.method
    if (statistic) {
      this.statistics = new Statistics(engine.device, statistic, 2 / o.samples, (name) => selected.has(name))
    }
  }

  /** Prunes. `outputs`: whether the hidden states of `batches` are to become the pruned block's outputs. */
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
    const { engine, index, weights } = this
    const collect = async (batch: Batch) => {
      const run = engine.runBlock(index, weights, batch)
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
    await engine.paced(batches, collect, () => this.o.meter.step('collect'))
    for (const group of statistics.takeAll()) await this.solveGroup(group.names, group)
    if (!outputs) return
    const step = () => this.o.meter.step('forward')
    await engine.passBlock(index, weights, batches, { step, offload: this.o.offload })
  }

  /** All batches advance from group to group together; each group is pruned before its outputs are computed. */
  private async pruneLayerwise(
    statistics: Statistics,
    batches: readonly Batch[],
    outputs: boolean,
  ): Promise<void> {
    const { engine, index, weights } = this
    const left = new Set(this.selected)
    const passes = batches.map((batch) => ({
      batch,
      run: engine.runBlock(index, weights, batch),
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
    const step = () => this.o.meter.step('collect')
    try {
      await engine.paced(passes, advance, step)
      while (left.size > 0 || outputs) {
        // Every batch passes through the same groups.
        const reached = passes[0]?.group
        if (!reached) break
        const group = statistics.take(reached)
        if (group) await this.solveGroup(group.names, group)
        for (const name of reached.names) left.delete(name)
        if (left.size > 0 || outputs) await engine.paced(passes, advance, step)
      }
      if (!outputs) return
      for (const { batch, run } of passes) {
        const output = await run.finish()
        batch.hidden.dispose()
        batch.hidden = output
        this.o.offload?.(output)
      }
    } finally {
      for (const { run } of passes) run.dispose()
    }
  }

  /** Prunes layers that share one input. */
  private async solveGroup(names: readonly string[], statistics: GroupStatistics | undefined): Promise<void> {
    const { device } = this.engine
    const made: Tensor[] = statistics ? [statistics.sum] : []
    try {
      await device.within(made, async () => {
        const watch = new Stopwatch(device)
        const solver = this.prepare(statistics)
        watch.stop()
        const prepared = async () => ({ ...(await solver.preparation?.()), seconds: await watch.seconds() })
        for (const name of names) {
          const first = name === names[0]
          const layer = await this.solve(name, solver, first ? prepared : undefined)
          if (statistics?.pooled || statistics?.tokens === 0) layer.fewTokens = statistics.tokens
          this.reports.push(layer)
          this.o.meter.step('solve', layer)
        }
      })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /** An expert that no token has reached, nor any other of its kind before it, leaves only the weights to go by. */
  private prepare(statistics: GroupStatistics | undefined): Solver {
    const { device } = this.engine
    const unseen = statistics?.tokens === 0 && !statistics.pooled
    const method = unseen ? withoutInputs : this.o.method
    return method.prepare(device, this.o.settings, statistics?.sum)
  }

  /** Prunes one layer. `prepared` tells what its report is to say of the preparation. */
  private async solve(
    name: string,
    solver: Solver,
    prepared: (() => Promise<Prepared>) | undefined,
  ): Promise<LayerReport> {
    const { device } = this.engine
    const weight = this.weights.linear(name)
    const layerName = this.weights.spec.prefix + name
    const made: Tensor[] = []
    try {
      return await device.within(made, async () => {
        const selection = await this.selection(weight)
        const dense = weight.solving()
        made.push(dense)
        const solved = await solveLayer(device, solver, dense, selection)
        const mask = this.storedMask(weight, solved.mask)
        const stored = weight.settle(dense)
        made.push(stored)
        await this.o.destination.store(weight.name, stored, mask)
        return layerReport(layerName, weight, solved, await prepared?.())
      })
    } catch (error) {
      if (!(error instanceof SparseGptError) || error.code === 'ABORTED') throw error
      throw new SparseGptError(error.code, `${layerName}: ${error.message}`, { cause: error })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /** The mask in the layout of the stored form, if the destination wants it. */
  private storedMask(weight: LinearWeight, mask: Tensor): Tensor | undefined {
    if (!this.o.destination.usesMask) {
      mask.dispose()
      return undefined
    }
    return weight.storedMask(mask)
  }

  private async selection(weight: LinearWeight): Promise<Selection> {
    const { sparsity, pattern, masks } = this.o
    if (!masks) return pattern ? { pattern } : { sparsity: sparsity ?? 0.5 }
    const shape = storedShape(weight.spec)
    const stored = this.engine.device.upload(await masks.read(weight.name, shape), shape)
    return { given: weight.solvingMask(stored) }
  }
}

/** What the preparation did, and its time. */
type Prepared = Partial<Preparation> & { seconds: number }

function layerReport(
  name: string,
  { spec: { rows, columns } }: LinearWeight,
  { loss, zeros, seconds }: SolvedLayer,
  { dampening, retries = 0, deadColumns = 0, ...preparation }: Prepared = { seconds: 0 },
): LayerReport {
  return {
    name,
    rows,
    columns,
    sparsity: zeros / (rows * columns),
    loss,
    seconds: seconds + preparation.seconds,
    ...(retries > 0 && dampening !== undefined ? { dampening } : {}),
    ...(deadColumns > 0 ? { deadColumns } : {}),
  }
}
