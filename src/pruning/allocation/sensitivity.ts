import { SparseGptError } from '../../errors.js'
import type { BlockWeights } from '../../models/block-weights.js'
import type { Batch, Engine, Offload } from '../../models/engine.js'
import type { Tensor } from '../../native/device.js'
import { batchedByLength } from '../../text/windows.js'
import { prepareSolver, solveLayer } from '../layer-solver.js'
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

/** The hidden states of a model of which one block is pruned. */
interface Variant {
  block: number
  batches: Batch[]
}

/**
 * The divergences KL(dense ‖ pruned), nats per token, of models of which one block alone is pruned, by block and then by the
 * shares of zeros. The method sees the dense model's activations on all windows; the divergence is that of the beginnings of a few.
 * `layers`: the names of the layers to prune below the blocks' prefixes. Every block is loaded once: all variants go through it.
 */
export async function damageOfBlocks(
  engine: Engine,
  layers: readonly ReadonlySet<string>[],
  windows: readonly Int32Array[],
  shares: readonly number[],
  { method, settings, refit, offload, step }: SensitivityOptions,
): Promise<Map<number, number[]>> {
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
      try {
        if (statistics && index <= last) {
          await passCollecting(engine, index, weights, calibration, statistics, passing)
        }
        if (index === last) freed(calibration)
        if (names.size > 0) {
          for (const _ of shares) copies.push(engine.loadBlock(index))
          taken.push(...(statistics?.takeAll() ?? []))
          const groups = statistics ? taken : [...names].map((name) => ({ names: [name] }))
          for (const group of groups) {
            await pruneCopies(engine, copies, shares, group, { method, settings, refit })
            step(index)
          }
        }
        for (const copy of copies) {
          const batches = dense.map(sharing)
          variants.push({ block: index, batches })
          await engine.passBlock(index, copy, batches, passing)
        }
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

/** Prunes layers that share an input in every copy of a block, each to its share; overwrites the group's sum, if there is one. */
async function pruneCopies(
  { device }: Engine,
  copies: readonly BlockWeights[],
  shares: readonly number[],
  group: GroupStatistics | Pick<GroupStatistics, 'names'>,
  { method, settings, refit }: Pick<SensitivityOptions, 'method' | 'settings' | 'refit'>,
): Promise<void> {
  const prepared: Tensor[] = []
  try {
    const statistics = 'sum' in group ? group : undefined
    const solver = device.within(prepared, () =>
      prepareSolver(device, method, settings, statistics, { refit, alpha: 0 }),
    )
    for (const name of group.names) {
      for (const [i, copy] of copies.entries()) {
        const made: Tensor[] = []
        const layer = copy.linear(name)
        try {
          await device.within(made, async () => {
            const matrix = layer.solving()
            made.push(matrix)
            await solveLayer(device, solver, matrix, { sparsity: shares[i] })
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
  } finally {
    for (const tensor of prepared) tensor.dispose()
  }
}

async function divergences(
  engine: Engine,
  dense: readonly Batch[],
  variants: readonly Variant[],
  step: (block: number) => void,
): Promise<Map<number, number[]>> {
  const { device, architecture } = engine
  const head = engine.head()
  const finished: Tensor[] = []
  try {
    const end = (hidden: Tensor) => ({ x: head.finish(hidden), ...head.matrix })
    const targets = device.within(finished, () => dense.map(({ hidden }) => end(hidden)))
    const found = new Map<number, number[]>()
    for (const { block, batches } of variants) {
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
      found.set(block, [...(found.get(block) ?? []), sum / tokens])
      step(block)
    }
    return found
  } finally {
    head.dispose()
    for (const tensor of finished) tensor.dispose()
  }
}
