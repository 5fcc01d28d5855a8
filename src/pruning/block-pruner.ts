import { SparseGptError } from '../errors.js'
import type { MaskFile } from '../files/mask-file.js'
import type { BlockWeights } from '../models/block-weights.js'
import type { BlockRun } from '../models/block-run.js'
import type { Batch, Engine, Offload } from '../models/engine.js'
import type { LinearWeight } from '../models/linear-weight.js'
import { storedShape } from '../models/specs.js'
import type { LinearGroup } from '../models/steps.js'
import type { Tensor } from '../native/device.js'
import type { Choices } from './allocation/allocation.js'
import type { Destination } from './destination.js'
import {
  prepareSolver,
  prunesRowsApart,
  solveLayer,
  Stopwatch,
  type PreparedSolver,
  type SolvedLayer,
} from './layer-solver.js'
import { codesOf } from './codes.js'
import type { Grids, Method, Preparation, Selection } from './methods/method.js'
import { fitsWeights } from './methods/methods.js'
import type { MethodSettings } from './options.js'
import type { ProgressMeter } from './progress.js'
import { gridsFor, type Ranks } from './ranks.js'
import type { LayerReport } from './report.js'
import { reconstructBlock, type ReconstructionSettings } from '../training/reconstruction.js'
import { gramMatrix } from './statistic.js'
import { Statistics, type GroupStatistics } from './statistics.js'
import { sharing, type BatchPair, type Streams } from './streams.js'

export interface BlockPrunerOptions {
  method: Method
  /** The methods' options as parsed. */
  settings: MethodSettings
  /** What is pruned of a layer that has no mask. */
  choices: Choices
  masks?: MaskFile | undefined
  /** The number of calibration windows in all. */
  samples: number
  sequential: 'block' | 'layer'
  target: 'own' | 'dense'
  alpha: number
  refit: boolean
  reconstruct?: ReconstructionSettings | undefined
  offload?: Offload | undefined
  /** The ranks that the work is dealt to, if there are several. */
  ranks?: Ranks | undefined
  destination: Pick<Destination, 'store' | 'storeParameter' | 'usesMask' | 'usesCodes'>
  meter: ProgressMeter
}

/** Prunes one block: collects statistics of its inputs, solves its layers, replaces their weights. */
export class BlockPruner {
  private readonly statistics: Statistics | undefined
  private readonly reports: LayerReport[] = []
  /** The matrices, float32 [out, in], that wait for the block's reconstruction, with their masks. */
  private readonly solved = new Map<string, { matrix: Tensor; mask: Tensor }>()
  /** The checkpoint names of the layers, in the order in which they are pruned. */
  private readonly order: string[] = []
  /** The matrices, float32 [out, in], that this rank has pruned whole and the others wait for. */
  private readonly kept = new Map<string, { matrix: Tensor; grids: Grids | undefined }>()

  constructor(
    private readonly engine: Engine,
    private readonly o: BlockPrunerOptions,
    private readonly index: number,
    private readonly weights: BlockWeights,
    /** The block of the dense stream; `weights` where these are dense until they are pruned. */
    private readonly denseWeights: BlockWeights,
    /** The names below the block's prefix of the layers to prune. */
    private readonly selected: ReadonlySet<string>,
  ) {
    const statistic = fitsWeights(o, o.method) ? gramMatrix : o.method.statistic
    if (statistic) {
      this.statistics = new Statistics(engine.device, statistic, 2 / o.samples, (name) => selected.has(name))
    }
  }

  /**
   * Prunes. `outputs`: whether the hidden states of both streams are to become the block's outputs; else those of the pruned stream
   * stay its inputs.
   */
  async run(streams: Streams, { outputs }: { outputs: boolean }): Promise<LayerReport[]> {
    const { reconstruct } = this.o
    // What is fitted gets the block's inputs, and is what makes its outputs.
    const wanted = reconstruct ? { outputs: false, denseOutputs: true } : { outputs, denseOutputs: outputs }
    try {
      if (!this.statistics) {
        if (wanted.denseOutputs) await streams.passDense(this.index, this.denseWeights, this.collected)
        await this.solveGroups([...this.selected].map((name) => ({ names: [name] })))
        if (wanted.outputs) await streams.passPruned(this.index, this.weights, this.forwarded)
      } else if (this.o.sequential === 'layer') {
        await this.pruneLayerwise(this.statistics, streams, wanted)
      } else {
        await this.pruneBlockwise(this.statistics, streams, wanted)
      }
      if (reconstruct) {
        await this.reconstruct(streams, reconstruct)
        if (outputs) await streams.passPruned(this.index, this.weights, this.forwarded)
      }
    } finally {
      this.statistics?.dispose()
      for (const { matrix, mask } of this.solved.values())
        for (const tensor of [matrix, mask]) tensor.dispose()
      this.letGo()
    }
    streams.diverge()
    return this.o.ranks ? this.o.ranks.merge(this.reports, this.order) : this.reports
  }

  private readonly collected = () => this.o.meter.step('collect')
  private readonly forwarded = () => this.o.meter.step('forward')

  /** The paper's way: all layers from the dense block's activations; then the block runs again. */
  private async pruneBlockwise(
    statistics: Statistics,
    streams: Streams,
    { outputs, denseOutputs }: { outputs: boolean; denseOutputs: boolean },
  ): Promise<void> {
    const { engine, index, weights } = this
    const { ranks } = this.o
    const collect = async ({ pruned, dense, part }: BatchPair) => {
      const run = engine.runBlock(index, weights, pruned)
      const beside = dense && engine.runBlock(index, this.denseWeights, dense)
      const left = new Set(this.selected)
      const next = async () => {
        const reference = await beside?.advance()
        const group = await run.advance()
        if (group) statistics.add(group, this.o.target === 'dense' ? reference : undefined, part)
        return group
      }
      try {
        // What follows the last layer to prune is computed again anyway.
        for (let group = await next(); group; group = left.size > 0 ? await next() : undefined) {
          for (const name of group.names) left.delete(name)
        }
        if (beside && denseOutputs) await this.replace(dense, beside)
      } finally {
        run.dispose()
        beside?.dispose()
      }
      this.o.offload?.(pruned.hidden)
    }
    await engine.paced(streams.pairs, collect, this.collected)
    if (ranks) await statistics.combine((...groups) => ranks.sum(...groups))
    await this.solveGroups(statistics.takeAll().map(groupOf))
    if (outputs) await streams.passPruned(index, weights, this.forwarded)
  }

  /**
   * All batches advance from group to group together; each group is pruned before its outputs are computed. The dense stream is
   * a group ahead: it goes through a group before that is pruned.
   */
  private async pruneLayerwise(
    statistics: Statistics,
    streams: Streams,
    { outputs, denseOutputs }: { outputs: boolean; denseOutputs: boolean },
  ): Promise<void> {
    const { engine, index, weights } = this
    const { offload, ranks } = this.o
    const left = new Set(this.selected)
    const passes = streams.pairs.map(({ pruned, dense, part }) => ({
      batch: pruned,
      dense,
      part,
      run: engine.runBlock(index, weights, pruned),
      beside: dense && engine.runBlock(index, this.denseWeights, dense),
      group: undefined as LinearGroup | undefined,
      reference: undefined as LinearGroup | undefined,
    }))
    type Pass = (typeof passes)[number]
    const advanceDense = async (pass: Pass) => {
      pass.reference = await pass.beside?.advance()
      if (offload) pass.beside?.offload(offload)
      if (offload && pass.dense) offload(pass.dense.hidden)
    }
    const advance = async (pass: Pass) => {
      pass.group = await pass.run.advance()
      const { group, reference, part } = pass
      if (group) statistics.add(group, this.o.target === 'dense' ? reference : undefined, part)
      if (!offload) return
      pass.run.offload(offload)
      pass.beside?.offload(offload)
      offload(pass.batch.hidden)
    }
    try {
      if (streams.dense) await engine.paced(passes, advanceDense, this.collected)
      await engine.paced(passes, advance, this.collected)
      while (left.size > 0 || outputs) {
        // Every batch passes through the same groups.
        const reached = passes[0]?.group
        if (!reached) break
        for (const name of reached.names) left.delete(name)
        if (streams.dense && (left.size > 0 || denseOutputs))
          await engine.paced(passes, advanceDense, this.collected)
        if (ranks) await statistics.combine((...groups) => ranks.sum(...groups), reached)
        const group = statistics.take(reached)
        if (group) await this.solveGroups([groupOf(group)])
        if (left.size > 0 || outputs) await engine.paced(passes, advance, this.collected)
      }
      for (const { dense, beside } of passes) if (beside && denseOutputs) await this.replace(dense, beside)
      if (!outputs) return
      for (const { batch, run } of passes) await this.replace(batch, run)
    } finally {
      for (const { run, beside } of passes) {
        run.dispose()
        beside?.dispose()
      }
    }
  }

  /** Replaces the hidden states of a batch by what its run through the block gives. */
  private async replace(batch: Batch | undefined, run: BlockRun): Promise<void> {
    if (!batch) return
    const output = await run.finish()
    batch.hidden.dispose()
    batch.hidden = output
    this.o.offload?.(output)
  }

  /** Prunes layers by the inputs that they share; without statistics each by itself. */
  private async solveGroups(groups: readonly LayerGroup[]): Promise<void> {
    const owners = this.dealt(groups)
    for (const group of groups) await this.solveGroup(group, owners)
    for (const [name, owner] of owners) await this.receive(name, owner)
    this.letGo()
  }

  /** Which rank prunes which layer whole; those that are not in it each prunes in part. */
  private dealt(groups: readonly LayerGroup[]): Map<string, number> {
    const { ranks, masks, choices, method } = this.o
    if (!ranks) return new Map()
    const whole = groups.flatMap(({ names, statistics }) =>
      names.filter((name) => {
        const layer = this.weights.spec.prefix + name
        const selection = masks ? { given: true } : choices(layer)
        return !prunesRowsApart(method, statistics, selection, this.o)
      }),
    )
    return ranks.owners(new Map(whole.map((name) => [name, this.weights.linear(name).spec])))
  }

  /** Prunes layers that share one input, those apart that other ranks own. */
  private async solveGroup(
    { names, statistics }: LayerGroup,
    owners: ReadonlyMap<string, number>,
  ): Promise<void> {
    const { device } = this.engine
    const { sum, shift } = statistics ?? {}
    const made = [sum, shift].filter((tensor) => tensor !== undefined)
    this.order.push(...names.map((name) => this.weights.spec.prefix + name))
    const own = names.filter((name) => !this.isElsewhere(owners.get(name)))
    try {
      if (own.length === 0) return
      await device.within(made, async () => {
        const watch = new Stopwatch(device)
        const prepared = prepareSolver(device, this.o.method, this.o.settings, statistics, this.o)
        watch.stop()
        const told = async () => ({
          ...(await prepared.solver.preparation?.()),
          seconds: await watch.seconds(),
        })
        for (const name of own) {
          const first = name === own[0]
          const layer = await this.solve(name, prepared, owners.has(name), first ? told : undefined)
          if (statistics?.pooled || statistics?.tokens === 0) layer.fewTokens = statistics.tokens
          this.reports.push(layer)
          this.o.meter.step('solve', { layer })
        }
      })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  private isElsewhere(owner: number | undefined): boolean {
    return owner !== undefined && owner !== this.o.ranks?.rank
  }

  /** Prunes one layer. `whole`: whether other ranks wait for it; `prepared` tells what its report is to say of the preparation. */
  private async solve(
    name: string,
    solver: PreparedSolver,
    whole: boolean,
    prepared: (() => Promise<Prepared>) | undefined,
  ): Promise<LayerReport> {
    const { device } = this.engine
    const { ranks, settings } = this.o
    const weight = this.weights.linear(name)
    const layerName = this.weights.spec.prefix + name
    const made: Tensor[] = []
    try {
      return await device.within(made, async () => {
        const selection = await this.selection(layerName, weight)
        const dense = weight.solving()
        made.push(dense)
        const solved =
          ranks && !whole
            ? await ranks.solveRows(solver, settings, dense, selection)
            : await solveLayer(device, solver, dense, selection)
        if (whole) this.keep(name, dense, solved)
        else await this.finish(name, weight, dense, solved)
        return layerReport(layerName, weight, solved, await prepared?.())
      })
    } catch (error) {
      if (!(error instanceof SparseGptError) || error.code === 'ABORTED') throw error
      throw new SparseGptError(error.code, `${layerName}: ${error.message}`, { cause: error })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /** Takes a pruned matrix, float32 [out, in], over: hands it on, or keeps it to be fitted. */
  private async finish(
    name: string,
    weight: LinearWeight,
    matrix: Tensor,
    { mask, grids }: Pick<SolvedLayer, 'mask' | 'grids'>,
  ): Promise<void> {
    if (!this.o.reconstruct) return this.store(weight, matrix, mask, grids)
    weight.follow(matrix)
    this.solved.set(name, { matrix: matrix.share(), mask: mask.share() })
  }

  private keep(name: string, matrix: Tensor, { grids }: SolvedLayer): void {
    const shared = grids && { ...grids, steps: grids.steps.share(), zeros: grids.zeros.share() }
    this.kept.set(name, { matrix: matrix.share(), grids: shared })
  }

  private letGo(): void {
    for (const { matrix, grids } of this.kept.values())
      for (const tensor of [matrix, grids?.steps, grids?.zeros]) tensor?.dispose()
    this.kept.clear()
  }

  /** Takes over a layer that `owner` has pruned whole. */
  private async receive(name: string, owner: number): Promise<void> {
    const { device } = this.engine
    const { method, settings, ranks } = this.o
    const weight = this.weights.linear(name)
    const kept = this.kept.get(name)
    const made: Tensor[] = []
    try {
      await device.within(made, async () => {
        const matrix = kept?.matrix.share() ?? weight.solving()
        made.push(matrix)
        const stepType = weight.storedType
        const grids = kept ? kept.grids : gridsFor(device, method, settings, matrix, { stepType })
        for (const tensor of [matrix, grids?.steps, grids?.zeros])
          if (tensor) await ranks?.copy(tensor, owner)
        await this.finish(name, weight, matrix, { mask: device.markZeros(matrix), grids })
      })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
  }

  /** Hands a finished matrix on, float32 [out, in], which the forward pass then sees as it is stored. */
  private async store(weight: LinearWeight, solved: Tensor, mask: Tensor, grids?: Grids): Promise<void> {
    const { destination } = this.o
    // Of float32 weights: those that are rounded to the stored type may lie between two codes.
    const codes = grids && destination.usesCodes ? codesOf(this.engine.device, solved, grids) : undefined
    const stored = weight.settle(solved)
    try {
      await destination.store(weight.name, stored, { mask: this.storedMask(weight, mask), codes })
    } finally {
      stored.dispose()
    }
  }

  /** Fits what has been pruned to the dense block's outputs, and stores it. */
  private async reconstruct(streams: Streams, settings: ReconstructionSettings): Promise<void> {
    const { engine, index, weights, o } = this
    const watch = performance.now()
    const next = await this.next(streams, settings)
    let result: Awaited<ReturnType<typeof reconstructBlock>>
    try {
      result = await reconstructBlock({
        engine,
        index,
        weights,
        solved: new Map([...this.solved].map(([name, { matrix }]) => [name, matrix])),
        inputs: streams.pruned,
        targets: (streams.dense ?? []).map(({ hidden }) => hidden),
        next,
        settings,
        offload: o.offload,
        communicator: o.ranks?.communicator,
        step: () => o.meter.step('reconstruct'),
      })
    } finally {
      for (const tensor of next?.targets ?? []) tensor.dispose()
      next?.weights.dispose()
    }
    const { parameters, ...report } = result
    const reconstruction = { ...report, seconds: (performance.now() - watch) / 1000 }
    for (const layer of this.reports) layer.reconstruction = reconstruction
    const made: Tensor[] = []
    try {
      await engine.device.within(made, async () => {
        for (const [name, { matrix, mask }] of this.solved)
          await this.store(weights.linear(name), matrix, mask)
        for (const name of parameters) {
          await o.destination.storeParameter(weights.spec.prefix + name, weights.settleParameter(name))
        }
      })
    } finally {
      for (const tensor of made) tensor.dispose()
    }
    this.solved.clear()
  }

  /** The next block of the dense model and its outputs, if the reconstruction looks behind it. The caller disposes of both. */
  private async next(
    streams: Streams,
    { window }: ReconstructionSettings,
  ): Promise<{ weights: BlockWeights; targets: Tensor[] } | undefined> {
    const { engine, o } = this
    const index = this.index + 1
    if (window === 1 || index === engine.architecture.blockCount) return undefined
    const weights = streams.loadDense(index)
    const outputs = (streams.dense ?? []).map(sharing)
    try {
      await engine.passBlock(index, weights, outputs, { step: this.forwarded, offload: o.offload })
      return { weights, targets: outputs.map(({ hidden }) => hidden) }
    } catch (error) {
      for (const { hidden } of outputs) hidden.dispose()
      weights.dispose()
      throw error
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

  private async selection(layerName: string, weight: LinearWeight): Promise<Selection> {
    const { choices, masks } = this.o
    const stepType = weight.storedType
    if (!masks) return { ...choices(layerName), stepType }
    const shape = storedShape(weight.spec)
    const stored = this.engine.device.upload(await masks.read(weight.name, shape), shape)
    return { given: weight.solvingMask(stored), stepType }
  }
}

/** Layers that share an input, and what is known of it. */
interface LayerGroup {
  names: readonly string[]
  statistics?: GroupStatistics
}

const groupOf = (statistics: GroupStatistics): LayerGroup => ({ names: statistics.names, statistics })

/** What the preparation did, and its time. */
type Prepared = Partial<Preparation> & { seconds: number }

function layerReport(
  name: string,
  { spec: { rows, columns } }: LinearWeight,
  { loss, energy, zeros, fit, seconds }: SolvedLayer,
  { dampening, retries = 0, deadColumns = 0, ...preparation }: Prepared = { seconds: 0 },
): LayerReport {
  return {
    name,
    rows,
    columns,
    sparsity: zeros / (rows * columns),
    loss,
    ...(loss !== null && energy !== undefined && { error: energy > 0 ? loss / energy : 0 }),
    ...(fit && { error: fit.after, errorBefore: fit.before, iterations: fit.iterations }),
    seconds: seconds + preparation.seconds,
    ...(retries > 0 && dampening !== undefined ? { dampening } : {}),
    ...(deadColumns > 0 ? { deadColumns } : {}),
  }
}
