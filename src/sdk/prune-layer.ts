import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { Device, type DeviceName, type Tensor } from '../native/device.js'
import { deviceName } from '../native/devices.js'
import { parseOptions } from '../options.js'
import { checkSelection, pruningOptions } from '../pruning/options.js'
import { gramMatrix, squareSums } from '../pruning/statistic.js'
import { prepareSolver, solveLayer } from '../pruning/layer-solver.js'
import { fitsWeights, methodNamed, needsInputs } from '../pruning/methods/methods.js'
import type { MethodOptions, PruningMethod } from '../pruning/methods/names.js'

/** One matrix, and how it is to be pruned. */
export type PruneLayerOptions = LayerSettings & LayerGoal

/** How much is pruned: a share of the weights, half of them by default, a pattern, or what a mask marks. */
type LayerGoal =
  | {
      /** The share of the weights to prune, in [0, 1). Default 0.5. */
      sparsity?: number
      pattern?: never
      mask?: never
    }
  | {
      /** The pattern 'n:m': n of every m neighbours in a row are pruned. */
      pattern: string
      sparsity?: never
      mask?: never
    }
  | {
      /** The weights to prune, [rows, columns], 1 = prune; with sparsegpt the others make up for them. */
      mask: Uint8Array
      sparsity?: never
      pattern?: never
    }

interface LayerSettings extends MethodOptions {
  /** The matrix, float32, row-major [rows, columns] = [out, in]. It is not changed. */
  weight: Float32Array
  /** The number of output features. */
  rows: number
  /** The number of input features. */
  columns: number
  /**
   * The Hessian, float32 [columns, columns]: Σ x xᵀ over the layer's inputs, at any positive scale
   * (it scales the loss only). It is symmetric; the upper triangle is read. Needed by sparsegpt, admm and refit; of it wanda reads the diagonal and magnitude nothing.
   */
  hessian?: Float32Array
  /** The pruning method: 'sparsegpt' (default), 'admm', 'wanda' or 'magnitude'. */
  method?: PruningMethod
  /** The number of bits that the kept weights are rounded to, 2 … 8, on a grid per row (sparsegpt). Default: not rounded. */
  bits?: number
  /** The number of neighbours in a row, 32, 64 or 128, that have a grid of their own; it divides `columns`. Default: the whole row. */
  groupSize?: number
  /** Whether grids reach as far below zero as above it; else from the smallest weight, or zero, to the largest. Default false. */
  symmetric?: boolean
  /** Whether a part of a grid's range is taken where that has the least squared error. Default false. */
  clip?: boolean
  /** Whether the kept weights are fitted to the outputs once more after the method has pruned (admm always does). Default false. */
  refit?: boolean
  /** Whether zeros of `weight` are ordinary weights, which may be kept and become others. Default false: they stay zeros. */
  regrow?: boolean
  /** The device to compute on. Default 'cpu'. */
  device?: DeviceName
  /** The number of threads of the CPU device; 0 (default) for one per core. */
  threads?: number
}

/** A matrix that has been pruned. */
export interface PrunedLayer {
  /** The pruned matrix, float32 [rows, columns]. */
  weight: Float32Array
  /** The mask, [rows, columns], 1 = pruned. */
  mask: Uint8Array
  /** The loss ½ tr(ΔW H ΔWᵀ) with the damped H, which is ½ Σ (w − q)²/U_jj²; null for magnitude, wanda and admm. */
  loss: number | null
  /**
   * What fitting the kept weights came to (refit, admm): the relative output error tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), with H damped, before and
   * after it, and the iterations that it took; null where nothing is fitted.
   */
  fit: { before: number; after: number; iterations: number } | null
  /** The share of zeros in `weight`. */
  sparsity: number
  /** What the factorisation did (sparsegpt). `retries` > 0: `used` was raised because H could not be factored. */
  dampening: { used: number; retries: number } | null
  /** The number of inputs that were always zero; their weights are pruned (sparsegpt). */
  deadColumns: number
}

const schema = pruningOptions
  .extend({
    weight: z.instanceof(Float32Array),
    rows: z.int().min(1),
    columns: z.int().min(1).max(131072),
    hessian: z.instanceof(Float32Array).optional(),
    mask: z.instanceof(Uint8Array).optional(),
    device: deviceName.default('cpu'),
    threads: z.int().min(0).max(1024).default(0),
  })
  .strict()
  .superRefine((options, context) => {
    checkSelection(options, context)
    const { rows, columns, weight, hessian, mask, method, pattern } = options
    const check = (holds: boolean, name: string, message: string) => {
      if (!holds) context.addIssue({ code: 'custom', path: [name], message })
    }
    check(weight.length === rows * columns, 'weight', `must have rows · columns = ${rows * columns} elements`)
    check(
      !mask || mask.length === rows * columns,
      'mask',
      `must have rows · columns = ${rows * columns} elements`,
    )
    check(
      !needsInputs(options) || hessian !== undefined,
      'hessian',
      methodNamed(method).statistic ? `is needed for method "${method}"` : 'is needed for refit',
    )
    const square = columns * columns
    check(!hessian || hessian.length === square, 'hessian', `must have columns² = ${square} elements`)
    const { groupSize = 1 } = options
    check(
      columns % groupSize === 0,
      'groupSize',
      `needs a number of columns divisible by ${groupSize}, not ${columns}`,
    )
    const divides = !pattern || columns % pattern.m === 0
    check(divides, 'pattern', `needs a number of columns divisible by ${pattern?.m ?? 1}, not ${columns}`)
  })

/**
 * Prunes one weight matrix, for callers with their own pipeline. Runs on native threads; the arrays are copied before it returns.
 *
 * Method: SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1); ADMM (Meng et al. 2024, arXiv 2406.07831); magnitude; Wanda (Sun et al. 2023, arXiv
 * 2306.11695).
 *
 * Throws INVALID_OPTION, NON_FINITE (NaN or infinity in weight or hessian), NOT_POSITIVE_DEFINITE, OUT_OF_MEMORY,
 * DEVICE_UNAVAILABLE.
 */
export async function pruneLayer(options: PruneLayerOptions): Promise<PrunedLayer> {
  const o = parseOptions(schema, options, 'pruneLayer')
  const device = new Device(o.device, o.threads)
  const owned: Tensor[] = []
  try {
    return await device.within(owned, () => run(device, o))
  } catch (error) {
    if (!(error instanceof SparseGptError)) throw error
    throw new SparseGptError(error.code, `pruneLayer: ${error.message}`, { cause: error })
  } finally {
    for (const tensor of owned) tensor.dispose()
    await device.close()
  }
}

async function run(device: Device, o: z.output<typeof schema>): Promise<PrunedLayer> {
  const shape = [o.rows, o.columns]
  const method = methodNamed(o.method)
  // Copies of the arrays, made before the first wait: their owner may change, transfer or resize them while native threads read.
  const fits = fitsWeights(o, method)
  const statistic = fits ? gramMatrix : method.statistic
  if (fits && o.hessian) squareSums.fromHessian(o.hessian, o.columns) // refuses a negative diagonal
  const sum = o.hessian && statistic?.fromHessian(o.hessian, o.columns)
  const weight = device.upload(new Float32Array(o.weight), shape)
  const mask = o.mask && new Uint8Array(o.mask).map((entry) => (entry ? 1 : 0))
  const statistics = sum && {
    sum: device.upload(sum, statistic!.shape(o.columns)),
    shift: undefined,
  }
  const prepared = prepareSolver(device, method, o, statistics, { refit: o.refit, alpha: 0 })
  const { solver } = prepared
  const selection = {
    ...(mask ? { given: device.upload(mask, shape) } : {}),
    ...(o.pattern ? { pattern: o.pattern } : {}),
    sparsity: o.sparsity ?? 0.5,
  }
  const solved = await solveLayer(device, prepared, weight, selection)
  const { dampening = 0, retries = 0, deadColumns = 0 } = (await solver.preparation?.()) ?? {}
  return {
    weight: await device.readFloat32(weight),
    mask: (await device.read(solved.mask)) as Uint8Array,
    loss: solved.loss,
    fit: solved.fit ?? null,
    sparsity: solved.zeros / (o.rows * o.columns),
    dampening: solver.preparation ? { used: dampening, retries } : null,
    deadColumns,
  }
}
