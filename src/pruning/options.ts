import * as z from 'zod'
import { SparseGptError } from '../errors.js'

/** n of every m neighbouring weights in a row are pruned. */
export interface Pattern {
  n: number
  m: number
}

const pattern = z.string().transform((text, context): Pattern => {
  const match = /^(\d{1,4}):(\d{1,4})$/.exec(text)
  const [n, m] = match ? [Number(match[1]), Number(match[2])] : [0, 0]
  if (n < 1 || n >= m) {
    context.issues.push({
      code: 'custom',
      input: text,
      message: 'must be n:m with 1 <= n < m, such as 2:4 or 4:8',
    })
    return z.NEVER
  }
  return { n, m }
})

/** The options every pruning call shares. */
export const pruningOptions = z.object({
  method: z.enum(['sparsegpt', 'magnitude', 'wanda']).default('sparsegpt'),
  sparsity: z.number().min(0).lt(1).optional(),
  pattern: pattern.optional(),
  blockSize: z.int().min(1).max(65536).default(128),
  dampening: z.number().min(0).max(1000).default(0.01),
  bits: z.int().min(2).max(8).optional(),
})

const regularExpression = z
  .union([z.instanceof(RegExp), z.string()])
  .transform((value, context) => {
    try {
      return new RegExp(value)
    } catch (error) {
      context.issues.push({
        code: 'custom',
        input: value,
        message: `is not a regular expression: ${String(error)}`,
      })
      return z.NEVER
    }
  })
  .optional()

/** What is pruned and how, as far as it needs no file. */
export interface ModelPruningOptions {
  /** Default 'sparsegpt'. */
  method?: PruningMethod
  /** Share of the weights to prune, in [0, 1). Default 0.5 when neither pattern nor mask is given. */
  sparsity?: number
  /** 'n:m': n of every m neighbours in a row are pruned. */
  pattern?: string
  /** Columns whose mask is chosen together (sparsegpt). Default 128. */
  blockSize?: number
  /** Added to the diagonal of the Hessian, as a share of its mean (sparsegpt). Default 0.01. */
  dampening?: number
  /** Rounds the kept weights to 2^bits levels per row as well (sparsegpt). */
  bits?: number
  /**
   * 'block' (default, the paper's): all linears of a block see the dense block's activations, and the block is run again
   * pruned. 'layer': each group of linears sees the activations of the groups pruned before it; one forward pass less.
   */
  sequential?: 'block' | 'layer'
  /** Prune only layers whose name (such as 'model.layers.0.mlp.up_proj') it matches. */
  include?: RegExp | string
  /** Leave layers dense whose name it matches. */
  exclude?: RegExp | string
  /** The first block to prune, from 0. Default 0. */
  minBlock?: number
  /** The block to stop before. Default: all are pruned. */
  maxBlock?: number
}

/** Parses ModelPruningOptions. */
export const modelPruningOptions = pruningOptions.extend({
  sequential: z.enum(['block', 'layer']).default('block'),
  include: regularExpression,
  exclude: regularExpression,
  minBlock: z.int().min(0).default(0),
  maxBlock: z.int().min(1).optional(),
})

const memoryUnits: Partial<Record<string, number>> = {
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
}

/** Bytes, or a size such as '16GB' or '1.5 GiB'. */
export const memorySize = z.union([z.number().positive(), z.string()]).transform((size, context): number => {
  if (typeof size === 'number') return size
  const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*([kmgt]i?b)$/i.exec(size.trim()) ?? []
  const bytes = Number(amount) * (memoryUnits[unit?.toLowerCase() ?? ''] ?? NaN)
  if (bytes > 0) return bytes
  context.issues.push({ code: 'custom', input: size, message: "must be a size such as '16GB' or '900 MiB'" })
  return z.NEVER
})

export const samples = z.int().min(1).max(1_000_000).default(128)

export type PruningMethod = z.output<typeof pruningOptions>['method']

/** What every schema of pruning options checks across options. */
export function checkSelection(
  options: {
    method: PruningMethod
    sparsity?: number | undefined
    pattern?: Pattern | undefined
    mask?: unknown
    bits?: number | undefined
  },
  context: z.RefinementCtx,
): void {
  const given = (['sparsity', 'pattern', 'mask'] as const).filter((name) => options[name] !== undefined)
  if (given.length > 1) {
    const message = `cannot be combined with ${given[0] ?? ''}: give one of sparsity, pattern and mask`
    context.addIssue({ code: 'custom', path: [given[1] ?? ''], message })
  }
  if (options.bits !== undefined && options.method !== 'sparsegpt') {
    const message = `needs method "sparsegpt": "${options.method}" cannot make up for rounding`
    context.addIssue({ code: 'custom', path: ['bits'], message })
  }
}

/**
 * Parses `value` with `schema`; throws INVALID_OPTION that names the option, its value and what is allowed.
 * `subject` says whose options they are.
 */
export function parseOptions<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  subject: string,
): z.output<Schema> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const problems = result.error.issues.map((issue) => {
    if (issue.code === 'unrecognized_keys') return `unknown option ${issue.keys.join(', ')}`
    const name = issue.path.join('.')
    const given: unknown = issue.path.reduce<unknown>(
      (inner, key) => (typeof inner === 'object' && inner !== null ? Reflect.get(inner, key) : undefined),
      value,
    )
    return `option ${name}: ${issue.message}${given === undefined ? '' : ` (given: ${show(given)})`}`
  })
  throw new SparseGptError('INVALID_OPTION', `${subject}: ${problems.join('; ')}`)
}

function show(value: unknown): string {
  if (typeof value === 'object' && value !== null) return value.constructor.name
  return typeof value === 'string' ? JSON.stringify(value) : String(value)
}
