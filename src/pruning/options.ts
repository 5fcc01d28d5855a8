import * as z from 'zod'
import type { AllocationName } from './allocation/names.js'
import { allocation, type Recipe } from './allocation/recipe.js'
import {
  defaultMethod,
  methodNamed,
  methodNames,
  methodOptions,
  roundingMethods,
  type MethodOptions,
  type PruningMethod,
} from './methods/methods.js'
import { pattern, type Pattern } from './pattern.js'

export type { Pattern } from './pattern.js'

/** The options every pruning call shares. */
export const pruningOptions = methodOptions.extend({
  method: z.enum(methodNames).default(defaultMethod),
  sparsity: z.number().min(0).lt(1).optional(),
  pattern: pattern.optional(),
  bits: z.int().min(2).max(8).optional(),
  refit: z.boolean().default(false),
  regrow: z.boolean().default(false),
})

/** The methods' options, as parsed, and those that all methods share. */
export type MethodSettings = z.output<typeof methodOptions> & {
  bits?: number | undefined
  regrow?: boolean | undefined
}

const regularExpression = z
  .union([z.instanceof(RegExp), z.string()])
  .transform((value, context) => {
    try {
      // The flags g and y say where the search for the next match begins, which is not to depend on the layer before.
      return typeof value === 'string'
        ? new RegExp(value)
        : new RegExp(value.source, value.flags.replace(/[gy]/g, ''))
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
export interface ModelPruningOptions extends MethodOptions {
  /** The pruning method: 'sparsegpt' (default), 'admm', 'wanda' or 'magnitude'. */
  method?: PruningMethod
  /** The share of the weights to prune, in [0, 1). Default 0.5 when neither pattern nor mask is given. */
  sparsity?: number
  /** The pattern 'n:m': n of every m neighbours in a row are pruned. */
  pattern?: string
  /** The number of bits that the kept weights are rounded to, on a grid per row (sparsegpt). Default: not rounded. */
  bits?: number
  /** Whether the kept weights are fitted to the outputs once more after the method has pruned (admm always does). Default false. */
  refit?: boolean
  /** Whether zeros of the model are ordinary weights, which may be kept and become others. Default false: they stay zeros. */
  regrow?: boolean
  /**
   * What the outputs of a layer are to come near: what its weights give for the inputs that the pruned model has there ('own', default),
   * or, with the share `alpha`, for those that the dense model has ('dense'), which makes up for the layers before.
   */
  target?: 'own' | 'dense'
  /** The share of the dense model's inputs in a dense target, 0 … 1. Default 0.5. */
  alpha?: number
  /**
   * Whether every block is fitted to the dense model's outputs once it is pruned: the kept weights, biases and norms are trained with
   * gradients. `true` and a number of epochs stand for an object with the defaults. Default false.
   */
  reconstruct?: boolean | number | ReconstructOptions
  /**
   * How the goal is spread over the layers: the same share for each ('uniform', default); by the outliers of each block's scores ('owl');
   * by what pruning each block alone does to the model's next-token distributions ('sensitivity'); or as a recipe says, an object or the
   * path of a JSON file. All but 'uniform' are for sparsity, not for a pattern or mask.
   */
  allocation?: AllocationName | Recipe | (string & {})
  /**
   * 'block' (default, the paper's): all linears of a block see the dense block's activations, and the block is run again
   * pruned. 'layer': each group of linears sees the activations of the groups pruned before it; one forward pass less.
   */
  sequential?: 'block' | 'layer'
  /** A regular expression: only layers whose name (such as 'model.layers.0.mlp.up_proj') it matches are pruned. */
  include?: RegExp | string
  /** A regular expression: layers whose name it matches stay dense. */
  exclude?: RegExp | string
  /** The first block to prune, from 0. Default 0. */
  minBlock?: number
  /** The block to stop before. Default: all are pruned. */
  maxBlock?: number
}

/** How a pruned block is fitted to the dense model. */
export interface ReconstructOptions {
  /** How often the calibration windows are gone through. Default 4. */
  epochs?: number
  /** The learning rate of Adam at its highest, in (0, 1]. Default 3e-3. */
  learningRate?: number
  /** The number of calibration windows of a step. Default 2. */
  batch?: number
  /** The share of the windows that is held out to judge by, in (0, 0.5]. Default 0.1. */
  holdout?: number
}

const reconstruction = z
  .object({
    epochs: z.int().min(1).max(10_000).default(4),
    learningRate: z.number().positive().max(1).default(3e-3),
    batch: z.int().min(1).max(65_536).default(2),
    holdout: z.number().positive().max(0.5).default(0.1),
  })
  .strict()

const reconstruct = z
  .union([z.boolean(), z.int().min(1).max(10_000), reconstruction])
  .transform((value) => {
    if (typeof value === 'object') return value
    return value === false ? undefined : reconstruction.parse(value === true ? {} : { epochs: value })
  })
  .optional()

/** Parses ModelPruningOptions. */
export const modelPruningOptions = pruningOptions.extend({
  target: z.enum(['own', 'dense']).default('own'),
  alpha: z.number().min(0).max(1).default(0.5),
  reconstruct,
  allocation,
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

/** Validates a number of bytes, or a size such as '16GB' or '1.5 GiB'. */
export const memorySize = z.union([z.number().positive(), z.string()]).transform((size, context): number => {
  if (typeof size === 'number') return size
  const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*([kmgt]i?b)$/i.exec(size.trim()) ?? []
  const bytes = Number(amount) * (memoryUnits[unit?.toLowerCase() ?? ''] ?? NaN)
  if (bytes > 0) return bytes
  context.issues.push({ code: 'custom', input: size, message: "must be a size such as '16GB' or '900 MiB'" })
  return z.NEVER
})

export const samples = z.int().min(1).max(1_000_000).default(128)

/** What every schema of pruning options checks across options. */
export function checkSelection(
  options: {
    method: PruningMethod
    sparsity?: number | undefined
    pattern?: Pattern | undefined
    mask?: unknown
    bits?: number | undefined
    refit: boolean
    allocation?: unknown
  },
  context: z.RefinementCtx,
): void {
  const given = (['sparsity', 'pattern', 'mask'] as const).filter((name) => options[name] !== undefined)
  if (given.length > 1) {
    const message = `cannot be combined with ${given[0] ?? ''}: give one of sparsity, pattern and mask`
    context.addIssue({ code: 'custom', path: [given[1] ?? ''], message })
  }
  const [goal = 'sparsity'] = given
  if (goal !== 'sparsity' && (options.allocation ?? 'uniform') !== 'uniform') {
    const message = `cannot be combined with ${goal}: give sparsity, or in a recipe the patterns of layers`
    context.addIssue({ code: 'custom', path: ['allocation'], message })
  }
  if (options.bits !== undefined && !methodNamed(options.method).rounds) {
    const message = `needs method "${roundingMethods.join('" or "')}": "${options.method}" cannot make up for rounding`
    context.addIssue({ code: 'custom', path: ['bits'], message })
  }
  if (options.bits !== undefined && options.refit) {
    const message = 'cannot be combined with bits: weights that are fitted again leave the grid'
    context.addIssue({ code: 'custom', path: ['refit'], message })
  }
}
