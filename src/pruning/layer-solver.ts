import type { Device, Tensor } from '../native/device.js'
import { LeastSquares, type Fit } from './least-squares.js'
import type { Grids, Method, Selection, Solver } from './methods/method.js'
import { withoutInputs } from './methods/methods.js'
import type { MethodSettings } from './options.js'
import { freeZeros, settleZeros } from './regrowth.js'
import type { GroupStatistics } from './statistics.js'

/** How kept weights are fitted. */
export interface FitOptions {
  /** Whether they are fitted after the method has pruned. */
  refit: boolean
  /** The share of the dense stream in the target. */
  alpha: number
}

interface Fitting {
  squares: LeastSquares
  /** GroupStatistics.shift */
  shift: Tensor | undefined
  /** The share of the dense stream in the target. */
  alpha: number
  /** Whether weights are fitted after the method has pruned. */
  refit: boolean
  /** Whether the method ends near the fit, if it chooses itself what to prune. */
  near: boolean
}

/** The share of the gradient that a fit leaves; most of the way has been made where a method ends near it. */
const tolerance = { far: 3e-3, near: 0.1 }

/** A method that is prepared for an input, and what its weights are fitted with, if they are. */
export interface PreparedSolver {
  /** The method that prunes, which for want of inputs may be another than the one asked for. */
  method: Method
  solver: Solver
  fitting?: Fitting
  /** Whether zeros of the matrix may become other weights. */
  regrow?: boolean | undefined
}

/**
 * Prepares a method for the input that `statistics` tell of, whose sums it may overwrite; where weights are to be fitted its sum
 * is a Gram matrix. Made tensors go into the device's scope.
 */
export function prepareSolver(
  device: Device,
  method: Method,
  settings: MethodSettings,
  statistics:
    | (Pick<GroupStatistics, 'sum' | 'shift'> & Partial<Pick<GroupStatistics, 'tokens' | 'pooled'>>)
    | undefined,
  { refit, alpha }: FitOptions,
): PreparedSolver {
  const { regrow } = settings
  if (isUnreached(statistics)) {
    return { method: withoutInputs, solver: withoutInputs.prepare(device, settings, undefined), regrow }
  }
  const shift = statistics?.shift
  const refits = refit || method.refits === true
  if (!statistics || !(refits || shift))
    return { method, solver: method.prepare(device, settings, statistics?.sum), regrow }
  // What layers before have spoilt is to be made up for with care: undamped it would be learnt by heart.
  const { dampening = shift ? 0.1 : 0.01 } = settings
  const squares = new LeastSquares(device, device.cast(statistics.sum, 'float32'), dampening)
  const sum = method.statistic?.ofGram(device, statistics.sum)
  const solver = method.prepare(device, method.refits ? { ...settings, dampening } : settings, sum)
  return {
    method,
    solver,
    fitting: { squares, shift, alpha, refit: refits, near: method.refits === true },
    regrow,
  }
}

/** Whether no token has reached an expert, nor any other of its kind before it, which leaves only the weights to go by. */
const isUnreached = (statistics: Partial<Pick<GroupStatistics, 'tokens' | 'pooled'>> | undefined): boolean =>
  statistics?.tokens === 0 && !statistics.pooled

/** Whether rows of a matrix can be pruned apart from each other: prepareSolver() of the same. */
export const prunesRowsApart = (
  method: Method,
  statistics: (Pick<GroupStatistics, 'shift'> & Parameters<typeof isUnreached>[0]) | undefined,
  selection: Parameters<Method['rowsApart']>[0],
  { refit }: Pick<FitOptions, 'refit'>,
): boolean =>
  isUnreached(statistics)
    ? withoutInputs.rowsApart(selection)
    : !refit && !statistics?.shift && method.rowsApart(selection)

/** What the pruning of one matrix came to. */
export interface SolvedLayer {
  /** The mask, uint8 [rows, columns], 1 = pruned. */
  mask: Tensor
  /** The loss ½ tr(ΔW H ΔWᵀ); null where the method does not know it. */
  loss: number | null
  /** ½ tr(W H Wᵀ) of the matrix before, of which the loss is a share; undefined where that is not known, or `fit` tells of it. */
  energy: number | undefined
  /** What the kept weights were rounded to; undefined where they were not. */
  grids: Grids | undefined
  /** The number of zeros in the matrix. */
  zeros: number
  /** How well the kept weights do; undefined where nothing is fitted. */
  fit: Fit | undefined
  /** The time that the device took. */
  seconds: number
}

/** Prunes `weight`, float32 [rows, columns], in place, and waits for it. Made tensors go into the device's scope. */
export async function solveLayer(
  device: Device,
  { solver, fitting, regrow = false }: PreparedSolver,
  weight: Tensor,
  selection: Selection,
): Promise<SolvedLayer> {
  const watch = new Stopwatch(device)
  if (regrow) freeZeros(device, weight)
  const goal = fitting && goalOf(device, fitting, weight)
  const energy = goal ? undefined : solver.energy?.(weight)
  const { mask, loss, grids } = solver.prune(weight, selection)
  const precision = fitting?.near && !selection.given ? tolerance.near : tolerance.far
  const fitted = goal && fitting.squares.fit(weight, goal, fitting.refit ? precision : undefined)
  if (regrow) settleZeros(device, weight)
  watch.stop()
  const counted = device.countZeros(weight)
  const reads = [
    device.read(counted),
    loss ? device.read(loss) : Promise.resolve(undefined),
    energy ?? Promise.resolve(undefined),
    fitted ?? Promise.resolve(undefined),
    watch.seconds(),
  ] as const
  const [[zeros = 0], losses, whole, fit, seconds] = await Promise.all(reads)
  return { mask, grids, loss: losses?.[0] ?? null, energy: whole, zeros, fit, seconds }
}

/** What the outputs are to come near, as weights in the scale of LeastSquares; with a dense stream `weight` becomes these, its zeros apart. */
function goalOf(device: Device, { squares, shift, alpha }: Fitting, weight: Tensor): Tensor {
  if (!shift) {
    const goal = device.cast(weight, 'float32')
    squares.enter(goal)
    return goal
  }
  const zeros = device.markZeros(weight)
  const goal = squares.towards(weight, shift, alpha)
  device.cast(goal, 'float32', weight)
  squares.leave(weight)
  device.applyMask(weight, zeros)
  return goal
}

/** Measures the time of the device's own clock between two points of its queue. Made tensors go into the device's scope. */
export class Stopwatch {
  private readonly start: Tensor
  private end: Tensor | undefined

  constructor(private readonly device: Device) {
    this.start = device.timestamp()
  }

  stop(): void {
    this.end = this.device.timestamp()
  }

  /** The seconds from the making of the stopwatch to stop(); waits for the queue. */
  async seconds(): Promise<number> {
    const stamps = [this.start, this.end ?? this.start].map((stamp) => this.device.read(stamp))
    const [from, to] = await Promise.all(stamps)
    return (to?.[0] ?? 0) - (from?.[0] ?? 0)
  }
}
