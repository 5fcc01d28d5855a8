import { stat } from 'node:fs/promises'
import { hostname } from 'node:os'
import { SparseGptError } from '../errors.js'
import { openCheckpoint } from '../files/checkpoint.js'
import type { StoredTensor } from '../files/safetensors.js'
import type { Engine } from '../models/engine.js'
import type { LinearSpec } from '../models/specs.js'
import type { Communicator } from '../native/communicator.js'
import type { Device, Tensor } from '../native/device.js'
import type { Destination, FinishedBlock } from './destination.js'
import { solveLayer, type PreparedSolver, type SolvedLayer } from './layer-solver.js'
import type { Grids, Method, Selection } from './methods/method.js'
import type { MethodSettings } from './options.js'
import type { LayerReport } from './report.js'
import type { GroupStatistics } from './statistics.js'

/** Rows of a matrix that follow each other. */
interface Rows {
  first: number
  count: number
}

/** The number of rows that the CPU works on at once (`lanes` of native/cpu/lanes.h): less of them take as long. */
const lanes = 16

/**
 * A pruning job's work as it is dealt to ranks. Each takes its part of the windows through the forward pass; sums over all windows are sums
 * over ranks; every rank factors them, and solves some rows of each matrix, or, where rows depend on each other, whole matrices. So what
 * all ranks have at the end of a block is the same.
 */
export class Ranks {
  constructor(
    private readonly device: Device,
    readonly communicator: Communicator,
  ) {}

  get rank(): number {
    return this.communicator.rank
  }

  get size(): number {
    return this.communicator.size
  }

  /** Sums what the ranks have collected; `symmetric`: of the sums the upper triangles suffice. */
  async sum(groups: readonly GroupStatistics[], { symmetric }: { symmetric: boolean }): Promise<void> {
    const { device, communicator } = this
    const tokens = await communicator.gather(
      device,
      groups.map((group) => group.tokens),
    )
    for (const [i, group] of groups.entries()) {
      group.tokens = tokens.reduce((total, counts) => total + counts[i]!, 0)
      await communicator.allReduce(device, group.sum, { upper: symmetric })
      if (group.shift) await communicator.allReduce(device, group.shift)
    }
  }

  /**
   * Prunes `weight`, float32 [rows, columns], in place, each rank some of its rows. The loss, the zeros and the seconds are of this rank's.
   * Made tensors go into the device's scope.
   */
  async solveRows(
    solver: PreparedSolver,
    settings: MethodSettings,
    weight: Tensor,
    selection: Selection,
  ): Promise<SolvedLayer> {
    const { device, communicator } = this
    const parts = this.rows(weight.rows)
    const { first, count } = parts[communicator.rank]!
    let own: SolvedLayer | undefined
    if (count > 0) {
      const rows = (tensor: Tensor) => device.adopt(tensor.rowRange(first, count))
      const given = selection.given && rows(selection.given)
      own = await solveLayer(device, solver, rows(weight), { ...selection, given })
    }
    await this.exchangeRows(weight, parts)
    const grids = gridsFor(device, solver.method, settings, weight, selection)
    for (const name of ['steps', 'zeros'] as const) {
      if (!grids) break
      if (own?.grids) {
        using rows = grids[name].rowRange(first, count)
        device.cast(own.grids[name], rows.dtype, rows)
      }
      await this.exchangeRows(grids[name], parts)
    }
    const { loss = 0, energy, seconds = 0, zeros = 0 } = own ?? {}
    return { mask: device.markZeros(weight), grids, loss, energy, zeros, seconds, fit: undefined }
  }

  /** The rank that solves each of `layers`, where these are dealt whole: the costliest first, each to who has least to do. */
  owners(layers: ReadonlyMap<string, Pick<LinearSpec, 'rows' | 'columns'>>): Map<string, number> {
    const loads = Array<number>(this.communicator.size).fill(0)
    const costs = new Map([...layers].map(([name, { rows, columns }]) => [name, rows * columns ** 2]))
    const owners = new Map([...layers.keys()].map((name) => [name, 0]))
    for (const [name, cost] of [...costs].sort(([, a], [, b]) => b - a)) {
      const least = loads.indexOf(Math.min(...loads))
      loads[least]! += cost
      owners.set(name, least)
    }
    return owners
  }

  /** Gives all ranks what `owner` has of a tensor. */
  copy(tensor: Tensor, owner: number): Promise<void> {
    return this.communicator.broadcast(this.device, tensor, owner)
  }

  /** The reports of all layers, in the order of `names`, from those of each rank about its share of them. */
  async merge(own: readonly LayerReport[], names: readonly string[]): Promise<LayerReport[]> {
    const reports = (await this.communicator.gather(this.device, own)).flat()
    const byName = new Map<string, LayerReport>()
    for (const report of reports) {
      const other = byName.get(report.name)
      byName.set(report.name, other ? mergeReports(other, report) : report)
    }
    return names.flatMap((name) => byName.get(name) ?? [])
  }

  /** The value of rank 0, on every rank. */
  share<T>(value: T): Promise<T> {
    return this.communicator.share(this.device, value)
  }

  /** The rows of each rank: whole groups of lanes, so that the last ranks may have none. */
  private rows(count: number): Rows[] {
    const { size } = this.communicator
    const tiles = Math.ceil(count / lanes)
    return Array.from({ length: size }, (_, r) => {
      const [first, end] = [r, r + 1].map((i) => Math.min(count, Math.ceil((i * tiles) / size) * lanes))
      return { first: first!, count: end! - first! }
    })
  }

  private async exchangeRows(tensor: Tensor, parts: readonly Rows[]): Promise<void> {
    for (const [root, { first, count }] of parts.entries()) {
      if (count === 0) continue
      using rows = tensor.rowRange(first, count)
      await this.communicator.broadcast(this.device, rows, root)
    }
  }
}

/** What several ranks say of their shares of a layer as one. */
function mergeReports(a: LayerReport, b: LayerReport): LayerReport {
  const weights = a.rows * a.columns
  const loss = a.loss === null || b.loss === null ? null : a.loss + b.loss
  // What a share of the loss is of; unknown, and small, where nothing was lost.
  const energy = [a, b].reduce((sum, { loss: own, error }) => sum + (own && error ? own / error : 0), 0)
  return {
    ...a,
    ...b,
    sparsity: Math.round((a.sparsity + b.sparsity) * weights) / weights,
    loss,
    ...(loss !== null && energy > 0 && { error: loss / energy }),
    seconds: Math.max(a.seconds, b.seconds),
  }
}

/** Room for what a method rounds `weight` to, where it does. */
export function gridsFor(
  device: Device,
  { rounds }: Method,
  { bits, groupSize }: MethodSettings,
  weight: Tensor,
  { stepType = 'float32' }: Selection,
): Grids | undefined {
  if (bits === undefined || !rounds) return undefined
  const shape = [weight.rows, weight.width / (groupSize ?? weight.width)]
  return { bits, steps: device.empty(stepType, shape), zeros: device.empty('float32', shape) }
}

/** What rank 0 tells the others when its folder has been begun. */
export interface BegunFolder<Finished> {
  finished: readonly Finished[]
  /** The weights of `finished`. */
  tensors: readonly StoredTensor[]
}

/** The folder of rank 0 as the other ranks see it, which store nothing: they read what an earlier job has finished, and at the end the result. */
export class FollowedDestination implements Destination {
  readonly usesMask = false
  readonly usesCodes = false
  finished: readonly FinishedBlock[] = []

  private constructor(
    private readonly engine: Engine,
    private readonly ranks: Ranks,
    readonly folder: string,
  ) {}

  /** Throws INVALID_OPTION where this rank does not see the folder. */
  static async create(engine: Engine, ranks: Ranks): Promise<FollowedDestination> {
    const { partialFolder, folder } = await ranks.share({ partialFolder: '', folder: '' })
    await stat(partialFolder).catch((cause: unknown) => {
      const message = `prune: option out: ${hostname()} does not see ${partialFolder}, which rank 0 has made: give a folder of a file system that all ranks share`
      throw new SparseGptError('INVALID_OPTION', message, { cause })
    })
    return new FollowedDestination(engine, ranks, folder)
  }

  store = () => Promise.resolve()
  storeParameter = () => Promise.resolve()
  finishBlock = () => Promise.resolve()

  async begin(): Promise<void> {
    const begun = await this.ranks.share<BegunFolder<FinishedBlock>>({ finished: [], tensors: [] })
    this.finished = begun.finished
    this.engine.weights.readInstead(begun.tensors)
  }

  async commit(): Promise<void> {
    await this.ranks.share(undefined)
    this.engine.reopen(await openCheckpoint(this.folder))
  }

  abort(error: unknown): Promise<unknown> {
    this.engine.weights.readInstead([])
    return Promise.resolve(error)
  }
}
