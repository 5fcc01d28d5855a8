import * as z from 'zod'
import { allocationNames, type AllocationName } from './allocation/names.js'
import { allocation, type Recipe } from './allocation/recipe.js'
import type { RoundingOptions } from './methods/method.js'
import { methodNamed, methodOptions, roundingMethods } from './methods/methods.js'
import { defaultMethod, methodNames, type MethodOptions, type PruningMethod } from './methods/names.js'
import { pattern, type Pattern } from './pattern.js'
import {
  distillationOptions,
  orEpochs,
  reconstructOptions,
  type DistillationOptions,
  type ReconstructOptions,
} from '../training/options.js'

export type { Pattern } from './pattern.js'

/**
 * The options every pruning call shares.
 *
 * @internal
 */
export const pruningOptions = methodOptions.extend({
  method: z.enum(methodNames).default(defaultMethod),
  sparsity: z.number().min(0).lt(1).optional(),
  pattern: pattern.optional(),
  bits: z.int().min(2).max(8).optional(),
  groupSize: z
    .union([z.literal(32), z.literal(64), z.literal(128)], { error: 'must be 32, 64 or 128' })
    .optional(),
  symmetric: z.boolean().default(false),
  clip: z.boolean().default(false),
  refit: z.boolean().default(false),
  regrow: z.boolean().default(false),
})

/**
 * The methods' options, as parsed, and those that all methods share.
 *
 * @internal
 */
export type MethodSettings = z.output<typeof methodOptions> &
  RoundingOptions & {
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

/** How much is pruned: a share of the weights, half of them by default, a pattern, or growing shares one after the other. */
export type PruningGoal = SparsityGoal | PatternGoal | ScheduleGoal

interface SparsityGoal {
  /** The share of the weights to prune, in [0, 1). Default 0.5. */
  sparsity?: number
  /**
   * How the goal is spread over the layers: the same share for each ('uniform', default); by the outliers of each block's scores ('owl');
   * by what pruning each block alone does to the model's next-token distributions ('sensitivity'); or as a recipe says, an object or the
   * path of a JSON file.
   */
  allocation?: AllocationName | Recipe | (string & {}) | URL
  pattern?: never
  schedule?: never
}

interface PatternGoal {
  /** The pattern 'n:m': n of every m neighbours in a row are pruned. */
  pattern: string
  /** A pattern holds for every layer alike; a recipe gives layers patterns of their own. */
  allocation?: 'uniform'
  sparsity?: never
  schedule?: never
}

interface ScheduleGoal {
  /**
   * Growing shares of zeros, such as [0.5, 0.65, 0.8]: the model is pruned to each in turn, from what the step before has left, and
   * fitted to the dense model after each where `reconstruct` or `distill` asks for that.
   */
  schedule: number[]
  /** How each share is spread over the layers, as with `sparsity`, but for recipes. */
  allocation?: AllocationName
  sparsity?: never
  pattern?: never
}

/** What is pruned and how, as far as it needs no file. */
export type ModelPruningOptions = PruningSettings & PruningGoal

/** How is pruned, whatever the goal. */
export interface PruningSettings extends MethodOptions {
  /** The pruning method: 'sparsegpt' (default), 'admm', 'wanda' or 'magnitude'. */
  method?: PruningMethod
  /** The number of bits that the kept weights are rounded to, 2 … 8, on a grid per row (sparsegpt). Default: not rounded. */
  bits?: number
  /** The number of neighbours in a row, 32, 64 or 128, that have a grid of their own. Default: the whole row. */
  groupSize?: number
  /** Whether grids reach as far below zero as above it; else from the smallest weight, or zero, to the largest. Default false. */
  symmetric?: boolean
  /** Whether a part of a grid's range is taken where that has the least squared error. Default false. */
  clip?: boolean
  /** Whether the kept weights are fitted to the outputs once more after the method has pruned (admm always does). Default false. */
  refit?: boolean
  /** Whether zeros of the model are ordinary weights, which may be kept and become others. Default false: they stay zeros. */
  regrow?: boolean
  /**
   * What the outputs of a layer are to come near: what its weights give for the inputs that the pruned model has there ('own', default),
   * or, with the share `alpha`, for those that the dense model has ('dense'), which makes up for the layers before.
   */
  target?: 'own' | 'dense'
  /** The share of the dense model's inputs in a dense target, 0 … 1; with target 'dense' only. Default 0.5. */
  alpha?: number
  /**
   * Whether every block is fitted to the dense model's outputs once it is pruned: the kept weights, biases and norms are trained with
   * gradients. `true` and a number of epochs stand for an object with the defaults. Default false.
   */
  reconstruct?: boolean | number | ReconstructOptions
  /**
   * Whether the whole pruned model is trained on all of the calibration text to give the dense model's next-token distributions, as
   * `distill` does. `true` and a number of epochs stand for an object with the defaults. Default false.
   */
  distill?: boolean | number | DistillationOptions
  /**
   * How much time is spent on the quality of the result: 'fast' (default) is SparseGPT as in the paper; 'good' also fits every block to the
   * dense model (`reconstruct`); 'best' fits longer and then trains the whole model (`distill`). Options that are given go first.
   */
  quality?: Quality
  /**
   * 'block' (default, the paper's): all linears of a block see the dense block's activations, and the block is run again
   * pruned. 'layer': each group of linears sees the activations of the groups pruned before it; one forward pass less.
   */
  sequential?: 'block' | 'layer'
  /**
   * The number of groups of calibration windows whose Gram matrices are added in pairs, pairs of pairs and so on. Default: one for each rank
   * that works on the job. Where it is given, 1, 2, 4 … groups a rank have the same result on any number of ranks; each doubling of a
   * rank's groups takes memory for the Gram matrices once more.
   */
  windowGroups?: number
  /** A regular expression: only layers whose name (such as 'model.layers.0.mlp.up_proj') it matches are pruned. */
  include?: RegExp | string
  /** A regular expression: layers whose name it matches stay dense. */
  exclude?: RegExp | string
  /** The first block to prune, from 0. Default 0. */
  minBlock?: number
  /** The block to stop before. Default: all are pruned. */
  maxBlock?: number
}

const presets = {
  fast: {},
  good: { sequential: 'layer', target: 'dense', reconstruct: { epochs: 1 } },
  best: { sequential: 'layer', target: 'dense', reconstruct: { epochs: 4 }, distill: {} },
} as const satisfies Record<string, PruningSettings>

/** How much time is spent on the quality of the result. */
export type Quality = keyof typeof presets

export const qualities = Object.keys(presets) as Quality[]

/** The options, ModelPruningOptions, with what their `quality` stands for where nothing else is given; what is no object as it is. */
export function withQuality(options: unknown): unknown {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) return options
  const { quality = 'fast' } = options as PruningSettings
  // Another word is for the validation to report.
  const preset: PruningSettings = qualities.includes(quality) ? presets[quality] : {}
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  const result: PruningSettings = { ...preset, ...Object.fromEntries(given) }
  for (const name of ['reconstruct', 'distill'] as const) {
    const [ours, theirs] = [preset[name], result[name]]
    if (typeof ours === 'object' && typeof theirs === 'object') result[name] = { ...ours, ...theirs }
  }
  return result
}

/** The end of a message that refuses an option, where it is the quality that asks for that. */
export const ofQuality = (
  { quality = 'fast' }: { quality?: Quality | undefined },
  option: keyof PruningSettings,
): string => (option in presets[quality] ? ` (quality "${quality}" asks for ${option})` : '')

/**
 * Parses ModelPruningOptions.
 *
 * @internal
 */
export const modelPruningOptions = pruningOptions.extend({
  target: z.enum(['own', 'dense']).default('own'),
  alpha: z.number().min(0).max(1).optional(),
  reconstruct: orEpochs(reconstructOptions),
  distill: orEpochs(distillationOptions),
  schedule: z
    .array(z.number().positive().lt(1))
    .min(1)
    .max(1000)
    .refine(
      (shares) => shares.every((share, i) => i === 0 || share > shares[i - 1]!),
      'must grow from step to step',
    )
    .optional(),
  quality: z.enum(qualities).default('fast'),
  allocation,
  sequential: z.enum(['block', 'layer']).default('block'),
  windowGroups: z.int().min(1).max(65536).optional(),
  include: regularExpression,
  exclude: regularExpression,
  minBlock: z.int().min(0).default(0),
  maxBlock: z.int().min(1).optional(),
})

/** The share of the dense model's inputs in a dense target, where none is given. */
export const defaultAlpha = 0.5

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

/**
 * Validates a number of bytes, or a size such as '16GB' or '1.5 GiB'.
 *
 * @internal
 */
export const memorySize = z.union([z.number().positive(), z.string()]).transform((size, context): number => {
  if (typeof size === 'number') return size
  const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*([kmgt]i?b)$/i.exec(size.trim()) ?? []
  const bytes = Number(amount) * (memoryUnits[unit?.toLowerCase() ?? ''] ?? NaN)
  if (bytes > 0) return bytes
  context.issues.push({ code: 'custom', input: size, message: "must be a size such as '16GB' or '900 MiB'" })
  return z.NEVER
})

/** @internal */
export const samples = z.int().min(1).max(1_000_000).default(128)

/**
 * What every schema of pruning options checks across options.
 *
 * @internal
 */
export function checkSelection(
  options: {
    method: PruningMethod
    sparsity?: number | undefined
    pattern?: Pattern | undefined
    mask?: unknown
    bits?: number | undefined
    groupSize?: number | undefined
    symmetric: boolean
    clip: boolean
    blockSize: number
    refit: boolean
    target?: 'own' | 'dense' | undefined
    alpha?: number | undefined
    reconstruct?: unknown
    distill?: unknown
    schedule?: unknown
    allocation?: unknown
    quality?: Quality | undefined
  },
  context: z.RefinementCtx,
): void {
  const given = (['sparsity', 'schedule', 'pattern', 'mask'] as const).filter(
    (name) => options[name] !== undefined,
  )
  if (given.length > 1) {
    const goals = given.includes('schedule') ? 'sparsity, schedule, pattern' : 'sparsity, pattern'
    const message = `cannot be combined with ${given[0] ?? ''}: give one of ${goals} and mask`
    context.addIssue({ code: 'custom', path: [given[1] ?? ''], message })
  }
  const [goal = 'sparsity'] = given
  if (goal !== 'sparsity' && goal !== 'schedule' && (options.allocation ?? 'uniform') !== 'uniform') {
    const message = `cannot be combined with ${goal}: give sparsity, or in a recipe the patterns of layers`
    context.addIssue({ code: 'custom', path: ['allocation'], message })
  }
  if (options.bits !== undefined && !methodNamed(options.method).rounds) {
    const message = `needs method "${roundingMethods.join('" or "')}": "${options.method}" cannot make up for rounding`
    context.addIssue({ code: 'custom', path: ['bits'], message })
  }
  checkGrids(options, context)
  if (
    goal === 'schedule' &&
    !(allocationNames as readonly unknown[]).includes(options.allocation ?? 'uniform')
  ) {
    const message = 'cannot be combined with schedule: a recipe says what the shares are in the end'
    context.addIssue({ code: 'custom', path: ['allocation'], message })
  }
  if (options.alpha !== undefined && options.target !== 'dense') {
    const message = 'needs target "dense": it is the share of the dense model in that target'
    context.addIssue({ code: 'custom', path: ['alpha'], message })
  }
  const fits = (['refit', 'reconstruct', 'distill'] as const).find((name) => options[name])
  if (options.bits !== undefined && fits) {
    const message = `cannot be combined with bits: weights that are fitted again leave the grid${ofQuality(options, fits)}`
    context.addIssue({ code: 'custom', path: [fits], message })
  }
}

/** What checkSelection checks of the grids that weights are rounded to. */
function checkGrids(
  o: Pick<
    Parameters<typeof checkSelection>[0],
    'bits' | 'groupSize' | 'symmetric' | 'clip' | 'blockSize' | 'pattern' | 'mask'
  >,
  context: z.RefinementCtx,
): void {
  const refuse = (option: string, message: string) =>
    context.addIssue({ code: 'custom', path: [option], message })
  for (const option of ['groupSize', 'symmetric', 'clip'] as const)
    if (o.bits === undefined && o[option] !== undefined && o[option] !== false)
      refuse(option, 'needs bits: it is of the grid that weights are rounded to')
  const { groupSize: size, blockSize: block, pattern } = o
  if (size === undefined || o.mask !== undefined) return
  if (pattern && size % pattern.m !== 0)
    refuse('groupSize', `groups of ${size} are not whole groups of the pattern's ${pattern.m}`)
  if (!pattern && size % block !== 0 && block % size !== 0)
    refuse(
      'groupSize',
      `groups of ${size} and blockSize ${block} do not fit each other: one must divide the other`,
    )
}
