import { readFile } from 'node:fs/promises'
import * as z from 'zod'
import { SparseGptError } from '../../errors.js'
import { readError, reason } from '../../files/read-error.js'
import type { LinearSpec } from '../../models/specs.js'
import type { Choice } from '../../native/device.js'
import { parseOptions, path } from '../../options.js'
import { pattern, type Pattern } from '../pattern.js'
import { allocationNames, type AllocationName } from './names.js'

/** What is pruned of a layer: a share of its weights, or n of every m neighbours. */
export type RecipeShare = { sparsity: number; pattern?: never } | { pattern: string; sparsity?: never }

/** A share for some layers: those whose name `layers` matches and whose block is in `blocks`; one of the two may be left out. */
export type RecipeEntry = RecipeShare & {
  /** A regular expression for names such as 'model.layers.0.mlp.up_proj'. */
  layers?: string
  /** The number of a block, from 0, or a range of blocks such as '2-5', both ends included. */
  blocks?: number | string
}

/** The goals of layers one by one. */
export interface Recipe {
  /** The share of the layers that no entry is for. */
  default?: RecipeShare
  /** The shares of some layers. Where several are for a layer, the first holds. */
  entries?: readonly RecipeEntry[]
}

const blocks = z.unknown().transform((value, context): [number, number] => {
  const [, first, last = first] = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(String(value)) ?? []
  if (first !== undefined && Number(first) <= Number(last)) return [Number(first), Number(last)]
  const message = "must be the number of a block, from 0, or a range of them such as '2-5'"
  context.issues.push({ code: 'custom', input: value, message })
  return z.NEVER
})

const layers = z.string().refine((text) => {
  try {
    new RegExp(text)
    return true
  } catch {
    return false
  }
}, 'must be a regular expression')

const share = z.strictObject({
  sparsity: z.number().min(0).lt(1).optional(),
  pattern: pattern.optional(),
})
const isOneShare = (value: z.output<typeof share>) =>
  (value.sparsity === undefined) !== (value.pattern === undefined)
const needsShare = 'must have one of sparsity (0 <= sparsity < 1) and pattern ("n:m")'

const entry = share
  .extend({ layers: layers.optional(), blocks: blocks.optional() })
  .refine(isOneShare, needsShare)
  .refine(
    (value) => value.layers !== undefined || value.blocks !== undefined,
    'must say for which layers it is: layers (a regular expression), blocks (a number or a range such as "2-5"), or both',
  )

/**
 * Parses a Recipe.
 *
 * @internal
 */
export const recipe = z.strictObject({
  default: share.refine(isOneShare, needsShare).optional(),
  entries: z.array(entry).max(100_000).default([]),
})

/**
 * A recipe as parsed.
 *
 * @internal
 */
export type ParsedRecipe = z.output<typeof recipe>

/**
 * An allocation as parsed: by name, or a recipe's.
 *
 * @internal
 */
export type Allocation = AllocationName | ParsedRecipe

/**
 * Parses the option `allocation`: a name, a recipe, or the path of a recipe's file, which readAllocation() reads.
 *
 * @internal
 */
export const allocation = z
  .unknown()
  .transform((value, context): string | ParsedRecipe => {
    const parsed = (typeof value === 'string' || value instanceof URL ? path : recipe).safeParse(value)
    if (parsed.success) return parsed.data
    context.issues.push(...(parsed.error.issues as typeof context.issues))
    return z.NEVER
  })
  .default('uniform')

/**
 * The allocation that the option stands for. Throws FILE_NOT_FOUND, INVALID_OPTION.
 *
 * @internal
 */
export async function readAllocation(value: string | ParsedRecipe): Promise<Allocation> {
  if (typeof value !== 'string') return value
  const name = allocationNames.find((each) => each === value)
  if (name) return name
  const text = await readFile(value, 'utf8').catch((error: unknown) => {
    const names = allocationNames.map((each) => `"${each}"`).join(', ')
    throw readError(error, value, `option allocation is one of ${names}, or a recipe's file (JSON)`)
  })
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    const message = `${value}: a recipe must be JSON, such as {"default": {"sparsity": 0.5}}: ${reason(cause)}`
    throw new SparseGptError('INVALID_OPTION', message, { cause })
  }
  return parseOptions(recipe, json, value, 'field')
}

/**
 * The share of zeros that a choice asks for.
 *
 * @internal
 */
export const shareOf = ({ sparsity = 0, pattern }: Choice): number =>
  pattern ? pattern.n / pattern.m : sparsity

/**
 * What the recipe says of every layer, by name. `blocks`: the layers to prune of every block, under their checkpoint names. With
 * `sparsity`, the share over all these layers, those without an entry get what is left, all the same share. Throws INVALID_OPTION.
 *
 * @internal
 */
export function recipeChoices(
  { entries, default: rest }: ParsedRecipe,
  blocks: readonly (readonly LinearSpec[])[],
  sparsity: number | undefined,
): Map<string, Choice> {
  const choices = new Map<string, Choice>()
  const left: LinearSpec[] = []
  const matches = entries.map(({ layers }) => (layers === undefined ? undefined : new RegExp(layers)))
  const used = new Set<number>()
  for (const [index, layers] of blocks.entries()) {
    for (const layer of layers) {
      const fits = entries.flatMap(({ blocks: [first, last] = [0, Infinity] }, i) =>
        first <= index && index <= last && (matches[i]?.test(layer.name) ?? true) ? [i] : [],
      )
      for (const i of fits) used.add(i)
      const [i] = fits
      if (i === undefined) left.push(layer)
      else choices.set(layer.name, choiceOf(`entries.${i}`, entries[i]!, layer))
    }
  }
  const idle = entries.findIndex((_, i) => !used.has(i))
  if (idle >= 0) {
    const { name } = blocks.flat()[0]!
    throw invalid(
      `entries.${idle} is for no layer that is pruned: names are like ${name}, blocks go from 0 to ${blocks.length - 1}`,
    )
  }
  if (left.length > 0) {
    const given =
      rest ?? (sparsity === undefined ? undefined : { sparsity: whatIsLeft(choices, blocks, sparsity) })
    if (!given) {
      throw invalid(`no entry is for ${left[0]!.name}: add a default, or give the option sparsity`)
    }
    for (const layer of left) choices.set(layer.name, choiceOf('default', given, layer))
  }
  checkGoal(choices, blocks, sparsity)
  return choices
}

function choiceOf(
  subject: string,
  { sparsity, pattern }: { sparsity?: number | undefined; pattern?: Pattern | undefined },
  { name, columns }: LinearSpec,
): Choice {
  if (!pattern) return { sparsity }
  if (columns % pattern.m === 0) return { pattern }
  const given = `${pattern.n}:${pattern.m}`
  throw invalid(
    `${subject}: ${name} has ${columns} columns, which ${pattern.m} does not divide: give it another pattern than ${given}, or a sparsity`,
  )
}

/** The share that layers without a choice need for all of them together to have `sparsity`. Throws INVALID_OPTION. */
function whatIsLeft(
  choices: ReadonlyMap<string, Choice>,
  blocks: readonly (readonly LinearSpec[])[],
  sparsity: number,
): number {
  let [zeros, weights] = [0, 0]
  for (const { name, rows, columns } of blocks.flat()) {
    const choice = choices.get(name)
    zeros += rows * columns * (sparsity - (choice ? shareOf(choice) : 0))
    if (!choice) weights += rows * columns
  }
  const share = zeros / weights
  if (share > -1e-12 && share < 1) return Math.max(0, share)
  throw invalid(
    `with sparsity ${sparsity} the layers that no entry is for would need a sparsity of ${share.toFixed(4)}, which is outside [0, 1): change sparsity or the entries`,
  )
}

/** Throws INVALID_OPTION unless the choices make up for `sparsity`, if that is given. */
function checkGoal(
  choices: ReadonlyMap<string, Choice>,
  blocks: readonly (readonly LinearSpec[])[],
  sparsity: number | undefined,
): void {
  if (sparsity === undefined) return
  const share = meanShare(blocks.flat(), ({ name }) => shareOf(choices.get(name)!))
  if (Math.abs(share - sparsity) < 1e-4) return
  throw invalid(
    `its layers come to a sparsity of ${share.toFixed(4)}, but sparsity ${sparsity} is asked for: leave out the option sparsity, or the recipe's default, whose layers then get what is left`,
  )
}

/**
 * The mean over layers of a share, weighted by their numbers of weights.
 *
 * @internal
 */
export function meanShare<Layer extends { rows: number; columns: number }>(
  layers: readonly Layer[],
  share: (layer: Layer) => number,
): number {
  let [zeros, weights] = [0, 0]
  for (const layer of layers) {
    zeros += share(layer) * layer.rows * layer.columns
    weights += layer.rows * layer.columns
  }
  return weights === 0 ? 0 : zeros / weights
}

const invalid = (message: string) =>
  new SparseGptError('INVALID_OPTION', `prune: option allocation: the recipe: ${message}`)
