import type { Engine, Offload } from '../../models/engine.js'
import type { LinearSpec } from '../../models/specs.js'
import type { Choice } from '../../native/device.js'
import { methodNamed } from '../methods/methods.js'
import type { PruningMethod } from '../methods/names.js'
import type { MethodSettings } from '../options.js'
import type { Pattern } from '../pattern.js'
import type { ProgressMeter } from '../progress.js'
import { outliersOfBlocks } from './outliers.js'
import { meanShare, recipeChoices, type Allocation } from './recipe.js'
import { damageOfBlocks } from './sensitivity.js'
import { leastDamage, outlierShares } from './shares.js'

/** OWL's bound on how far a block's share of zeros is from the goal. */
const lambda = 0.08
/** How far from the goal a block is pruned to measure its sensitivity. */
const reach = 0.15

export interface AllocationOptions {
  method: PruningMethod
  /** The methods' options as parsed. */
  settings: MethodSettings
  allocation: Allocation
  sparsity?: number | undefined
  pattern?: Pattern | undefined
  refit: boolean
  offload?: Offload | undefined
  /** What was measured before, which is not measured again. */
  shares?: Shares | undefined
  meter: ProgressMeter
}

/** The measured share of zeros of each block, null where none of its layers is pruned. */
export type Shares = readonly (number | null)[]

/** What is to be pruned of a layer, by its checkpoint name without '.weight'. */
export type Choices = (layer: string) => Choice

/**
 * Spreads the goal over the layers, and tells the shares where they are measured. `blocks`: the layers to prune of every block, under their checkpoint names. The same model, windows
 * and options give the same choices. Throws INVALID_OPTION, NON_FINITE, NOT_POSITIVE_DEFINITE, ABORTED.
 */
export async function allocate(
  engine: Engine,
  o: AllocationOptions,
  blocks: readonly (readonly LinearSpec[])[],
  windows: readonly Int32Array[],
): Promise<{ choices: Choices; shares?: Shares }> {
  const { allocation, pattern, sparsity = 0.5 } = o
  const same: Choice = pattern ? { pattern } : { sparsity }
  if (allocation === 'uniform' || (typeof allocation === 'string' && sparsity === 0)) {
    return { choices: () => same }
  }
  if (typeof allocation === 'object') {
    const choices = recipeChoices(allocation, blocks, o.sparsity)
    return { choices: (layer) => choices.get(layer) ?? same }
  }
  const measure = async () => {
    const found = await sharesOf(engine, { ...o, allocation, sparsity }, blocks, windows)
    return blocks.map((_, index) => found.get(index) ?? null)
  }
  const shares = o.shares ?? (await measure())
  const choices = new Map(
    blocks.flatMap((layers, index) =>
      layers.map(({ name }) => [name, { sparsity: shares[index] ?? sparsity }] as const),
    ),
  )
  return { choices: (layer) => choices.get(layer) ?? same, shares }
}

/** The shares of zeros by block. A planning engine measures one of several blocks that are alike. */
async function sharesOf(
  engine: Engine,
  o: AllocationOptions & { sparsity: number },
  blocks: readonly (readonly LinearSpec[])[],
  windows: readonly Int32Array[],
): Promise<Map<number, number>> {
  const { sparsity, meter, offload, settings, refit } = o
  const { architecture, device } = engine
  const selected = blocks.map(
    (layers, i) => new Set(layers.map(({ name }) => name.slice(architecture.block(i).prefix.length))),
  )
  const weights = (index: number) =>
    blocks[index]!.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  const step = (block: number) => {
    meter.block = Math.min(block, meter.blocks - 1)
    meter.step('allocate')
  }
  const toMap = (indices: Iterable<number>, shares: readonly number[]) =>
    new Map([...indices].map((index, i) => [index, shares[i]!]))
  try {
    if (o.allocation === 'owl') {
      const outliers = await outliersOfBlocks(engine, selected, windows, { step, offload })
      const measured = [...outliers].map(([index, share]) => ({ weights: weights(index), outliers: share }))
      return toMap(outliers.keys(), outlierShares(measured, sparsity, lambda))
    }
    const shares = [
      Math.max(0, sparsity - reach),
      sparsity,
      Math.min((1 + sparsity) / 2, sparsity + reach),
    ] as const
    const method = methodNamed(o.method)
    const options = { method, settings, refit, offload, step }
    const found = await damageOfBlocks(engine, selected, windows, shares, options)
    const measured = [...found].map(([index, damage]) => ({
      weights: weights(index),
      shares,
      damage: damage as [number, number, number],
    }))
    return toMap(found.keys(), leastDamage(measured, sparsity))
  } finally {
    // Failures are reported by whoever waited for them; here the queue only has to be empty.
    await device.synchronize().catch(() => undefined)
  }
}

/** The mean target of each block's layers, weighted by their numbers of weights; null for a block that stays dense. */
export function targetsByBlock(
  blocks: readonly (readonly LinearSpec[])[],
  targets: ReadonlyMap<string, number>,
): (number | null)[] {
  return blocks.map((layers) =>
    layers.length === 0 ? null : meanShare(layers, ({ name }) => targets.get(name) ?? 0),
  )
}
