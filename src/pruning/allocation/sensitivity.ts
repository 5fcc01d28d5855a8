import { SparseGptError } from '../../errors.js'
import type { BlockWeights } from '../../models/block-weights.js'
import type { Batch, Engine, Offload } from '../../models/engine.js'
import type { Choice, Tensor } from '../../native/device.js'
import { batchedByLength } from '../../text/windows.js'
import { prepareSolver, solveLayer, type PreparedSolver } from '../layer-solver.js'
import type { Method } from '../methods/method.js'
import { fitsWeights } from '../methods/methods.js'
import type { MethodSettings } from '../options.js'
import { gramMatrix } from '../statistic.js'
import { Statistics, type GroupStatistics } from '../statistics.js'
import { sharing } from '../streams.js'
import { passCollecting } from './dense-pass.js'

/** What the distributions are compared on: the beginnings of the first windows, of at most so many tokens. */
const compared = { windows: 4, tokens: 256 }

export interface SensitivityOptions {
  method: Method
  settings: MethodSettings
  refit: boolean
  offload?: Offload | undefined
  /** Called after each part of the work; may throw. */
  step: (block: number) => void
}

/** The hidden states of a model of which one block, or one layer, is pruned. */
interface Variant extends Pruned {
  batches: Batch[]
}

/** What is pruned of a model. */
interface Pruned {
  block: number
  /** The layer's name below the block's prefix; undefined for the whole block. */
  layer?: string | undefined
}

/** What pruning a part of a model does to it. */
export interface Damage extends Pruned {
  /** The divergence KL(dense ‖ pruned), nats per token. */
  damage: number
}

/**
 * The damage of pruning each block alone, by block and then by the shares of zeros; see damageOfParts. Every block is loaded once: all
 * variants go through it.
 */
export async function damageOfBlocks(
  engine: Engine,
  layers: readonly ReadonlySet<string>[],
  windows: readonly Int32Array[],
  shares: readonly number[],
  options: SensitivityOptions,
): Promise<Map<number, number[]>> {
  const choices = shares.map((sparsity) => ({ sparsity }))
  const found = new Map<number, number[]>()
  for (const { block, damage } of await damageOfParts(engine, layers, windows, choices, options))
    found.set(block, [...(found.get(block) ?? []), damage])
  return found
}

/**
 * The divergences KL(dense ‖ pruned), nats per token, of models of which one block alone is pruned, or with `each` 'layer' one layer
 * alone, in the model's order, and for each of `choices`. The method sees the dense model's activations on all windows; the divergence is that of the beginnings of a few.
 * `layers`: the names of the layers to prune below the blocks' prefixes.
 */
export async function damageOfParts(
  engine: Engine,
  layers: readonly ReadonlySet<string>[],
  windows: readonly Int32Array[],
  choices: readonly Choice[],
  {
    method,
    settings,
    refit,
    offload,
    step,
    each = 'block',
  }: SensitivityOptions & { each?: 'block' | 'layer' },
): Promise<Damage[]> {
  const { device } = engine
  const longest = windows.reduce((most, { length }) => Math.max(most, length), 0)
  const perBatch = () => engine.windowsPerBatch(longest)
  const last = layers.findLastIndex((names) => names.size > 0)
  const statistic = fitsWeights({ refit }, method) ? gramMatrix : method.statistic
  const beginnings = windows.slice(0, compared.windows).map((window) => window.subarray(0, compared.tokens))
  const dense = engine.embed(batchedByLength(beginnings, perBatch), offload)
  const calibration = statistic ? engine.embed(batchedByLength(windows, perBatch), offload) : []
  const variants: Variant[] = []
  const freed = (batches: Batch[]) => {
    for (const { hidden } of batches.splice(0)) hidden.dispose()
  }
  try {
    for (const [index, weights] of engine.blocks(undefined, { growing: true })) {
      const passing = { step: () => step(index), offload }
      const names = layers[index] ?? new Set()
      const copies: BlockWeights[] = []
      const taken: GroupStatistics[] = []
      const statistics =
        statistic && new Statistics(device, statistic, 2 / windows.length, (name) => names.has(name))
      const earlier = variants.flatMap(({ batches }) => batches)
      const pass = async (pruned: readonly BlockWeights[], layer?: string) => {
        for (const copy of pruned) {
          const batches = dense.map(sharing)
          variants.push({ block: index, layer, batches })
          await engine.passBlock(index, copy, batches, passing)
        }
      }
      try {
        if (statistics && index <= last) {
          await passCollecting(engine, index, weights, calibration, statistics, passing)
        }
        if (index === last) freed(calibration)
        if (names.size > 0) {
          if (each === 'block') for (const _ of choices) copies.push(engine.loadBlock(index))
          taken.push(...(statistics?.takeAll() ?? []))
          const groups: { names: readonly string[]; sums?: GroupStatistics }[] = statistics
            ? taken.map((sums) => ({ names: sums.names, sums }))
            : [...names].map((name) => ({ names: [name] }))
          for (const group of groups) {
            const prepared: Tensor[] = []
            try {
              const solver = device.within(prepared, () =>
                prepareSolver(device, method, settings, group.sums, { refit, alpha: 0 }),
              )
              if (each === 'block') await pruneCopies(engine, copies, choices, solver, group.names)
              for (const name of each === 'layer' ? group.names : []) {
                const own = choices.map(() => engine.loadBlock(index))
                copies.push(...own)
                await pruneCopies(engine, own, choices, solver, [name])
                await pass(own, name)
                for (const copy of copies.splice(0)) copy.dispose()
              }
            } finally {
              for (const tensor of prepared) tensor.dispose()
            }
            step(index)
          }
        }
        await pass(copies)
      } finally {
        statistics?.dispose()
        for (const { sum } of taken) sum.dispose()
        for (const copy of copies) copy.dispose()
      }
      await engine.passBlock(index, weights, [...dense, ...earlier], passing)
    }
    return await divergences(engine, dense, variants, step)
  } finally {
    for (const batches of [dense, calibration, ...variants.map((variant) => variant.batches)]) freed(batches)
  }
}

/** Prunes layers that share an input in every copy of a block, each as its choice says. */
async function pruneCopies(
  { device }: Engine,
  copies: readonly BlockWeights[],
  choices: readonly Choice[],
  solver: PreparedSolver,
  names: readonly string[],
): Promise<void> {
  for (const name of names) {
    for (const [i, copy] of copies.entries()) {
      const made: Tensor[] = []
      const layer = copy.linear(name)
      try {
        await device.within(made, async () => {
          const matrix = layer.solving()
          made.push(matrix)
          await solveLayer(device, solver, matrix, choices[i]!)
          layer.settle(matrix).dispose()
        })
      } catch (error) {
        if (!(error instanceof SparseGptError) || error.code === 'ABORTED') throw error
        throw new SparseGptError(error.code, `${layer.name}: ${error.message}`, { cause: error })
      } finally {
        for (const tensor of made) tensor.dispose()
      }
    }
  }
}

async function divergences(
  engine: Engine,
  dense: readonly Batch[],
  variants: readonly Variant[],
  step: (block: number) => void,
): Promise<Damage[]> {
  const { device, architecture } = engine
  const head = engine.head()
  const finished: Tensor[] = []
  try {
    const end = (hidden: Tensor) => ({ x: head.finish(hidden), ...head.matrix })
    const targets = device.within(finished, () => dense.map(({ hidden }) => end(hidden)))
    const found: Damage[] = []
    for (const { block, layer, batches } of variants) {
      let [sum, tokens] = [0, 0]
      for (const [i, { hidden }] of batches.entries()) {
        const losses = device.tidy(() =>
          device.klDivergence(end(hidden), targets[i]!, { softcap: architecture.logitSoftcap }),
        )
        const values = await device.readFloat32(losses)
        losses.dispose()
        tokens += values.length
        sum += values.reduce((a, b) => a + b, 0)
      }
      if (!Number.isFinite(sum)) {
        const message = `the divergence of the model with block ${block} pruned is not finite: the model's weights or activations are not`
        throw new SparseGptError('NON_FINITE', message)
      }
      found.push({ block, ...(layer !== undefined && { layer }), damage: sum / tokens })
      step(block)
    }
    return found
  } finally {
    head.dispose()
    for (const tensor of finished) tensor.dispose()
  }
}
