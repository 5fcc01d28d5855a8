import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { Device, type DeviceKind, type Tensor } from '../native/device.js'
import { checkSelection, parseOptions, pruningOptions } from './options.js'
import { prepareSolver } from './solver.js'

export interface PruneLayerOptions {
  /** float32, row-major [rows, columns] = [out, in]. Not changed. */
  weight: Float32Array
  rows: number
  columns: number
  /**
   * float32 [columns, columns]: Σ x xᵀ over the layer's inputs, at any positive scale (it scales the loss only). Symmetric;
   * the upper triangle is read. Needed by sparsegpt; of it wanda reads the diagonal and magnitude nothing.
   */
  hessian?: Float32Array
  method?: 'sparsegpt' | 'magnitude' | 'wanda'
  /** Share of the weights to prune, in [0, 1). Default 0.5 when neither pattern nor mask is given. */
  sparsity?: number
  /** 'n:m': n of every m neighbours in a row are pruned. */
  pattern?: string
  /** [rows, columns], 1 = prune: the weights to prune are given, the others make up for them. */
  mask?: Uint8Array
  /** Columns whose mask is chosen together (sparsegpt). Default 128. */
  blockSize?: number
  /** Added to the diagonal of the Hessian, as a share of its mean (sparsegpt). Default 0.01. */
  dampening?: number
  /** Rounds the kept weights to 2^bits levels per row as well (sparsegpt). */
  bits?: number
  device?: DeviceKind
  /** Threads of the CPU device; 0 (default) for one per core. */
  threads?: number
}

export interface PrunedLayer {
  /** float32 [rows, columns]. */
  weight: Float32Array
  /** [rows, columns], 1 = pruned. */
  mask: Uint8Array
  /** ½ tr(ΔW H ΔWᵀ) with the damped H, which is ½ Σ (w − q)²/U_jj²; null for magnitude and wanda. */
  loss: number | null
  /** Share of zeros in `weight`. */
  sparsity: number
  /** What the factorisation did (sparsegpt). `retries` > 0: `used` was raised because H could not be factored. */
  dampening: { used: number; retries: number } | null
  /** Inputs that were always zero; their weights are pruned (sparsegpt). */
  deadColumns: number
}

const schema = pruningOptions
  .extend({
    weight: z.instanceof(Float32Array),
    rows: z.int().min(1),
    columns: z.int().min(1).max(131072),
    hessian: z.instanceof(Float32Array).optional(),
    mask: z.instanceof(Uint8Array).optional(),
    device: z.enum(['auto', 'cpu', 'cuda']).default('cpu'),
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
    check(method === 'magnitude' || hessian !== undefined, 'hessian', `is needed for method "${method}"`)
    const square = columns * columns
    check(!hessian || hessian.length === square, 'hessian', `must have columns² = ${square} elements`)
    const divides = !pattern || columns % pattern.m === 0
    check(divides, 'pattern', `needs a number of columns divisible by ${pattern?.m ?? 1}, not ${columns}`)
  })

/**
 * Prunes one weight matrix, for callers with their own pipeline. Runs on native threads; do not change the arrays meanwhile.
 *
 * Method: SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1); magnitude; Wanda (Sun et al. 2023, arXiv
 * 2306.11695).
 *
 * Throws INVALID_OPTION, NON_FINITE (NaN or infinity in weight or hessian), NOT_POSITIVE_DEFINITE, OUT_OF_MEMORY,
 * DEVICE_UNAVAILABLE.
 */
export async function pruneLayer(options: PruneLayerOptions): Promise<PrunedLayer> {
  const o = parseOptions(schema, options, 'pruneLayer')
  const device = new Device(o.device, o.threads)
  const owned: { dispose(): void }[] = []
  try {
    return await device.within(owned as never[], () => run(device, o))
  } catch (error) {
    if (error instanceof SparseGptError && error.code === 'NON_FINITE') {
      throw new SparseGptError('NON_FINITE', `pruneLayer: ${error.message}`, { cause: error })
    }
    throw error
  } finally {
    for (const tensor of owned) tensor.dispose()
    await device.close()
  }
}

async function run(device: Device, o: z.output<typeof schema>): Promise<PrunedLayer> {
  const shape = [o.rows, o.columns]
  const weight = device.upload(o.weight, shape)
  const selection = {
    ...(o.mask ? { mask: device.upload(o.mask, shape) } : {}),
    ...(o.pattern ? { pattern: o.pattern } : {}),
    sparsity: o.sparsity ?? 0.5,
  }
  const solver = prepareSolver(device, o, uploadSums(device, o))
  const pruned = solver.prune(weight, selection)
  const factor = solver.factor
  const factorStats = factor ? device.read(factor.stats) : undefined
  const [out, mask, stats] = await Promise.all([
    device.readFloat32(weight),
    device.read(pruned.mask) as Promise<Uint8Array>,
    device.read(pruned.stats),
  ])
  const [loss = NaN, zeros = 0] = stats
  const [used = 0, retries = 0, deadColumns = 0] = (await factorStats) ?? []
  return {
    weight: out,
    mask,
    loss: Number.isNaN(loss) ? null : loss,
    sparsity: zeros / out.length,
    dampening: factor ? { used, retries } : null,
    deadColumns,
  }
}

/** What the method needs to know of the inputs: the Hessian, its diagonal, or nothing. */
function uploadSums(device: Device, o: z.output<typeof schema>): Tensor | undefined {
  const { hessian, columns, method } = o
  if (!hessian || method === 'magnitude') return undefined
  if (method === 'sparsegpt') return device.upload(hessian, [columns, columns])
  const squares = Float32Array.from({ length: columns }, (_, j) => hessian[j * columns + j] ?? 0)
  return device.upload(squares, [columns])
}
