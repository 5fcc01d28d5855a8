import { SparseGptError } from '../../errors.js'
import type { BlockWeights } from '../../models/block-weights.js'
import type { Engine, Offload } from '../../models/engine.js'
import type { Device, Tensor } from '../../native/device.js'
import { batchedByLength } from '../../text/windows.js'
import { squareSums } from '../statistic.js'
import { Statistics, type GroupStatistics } from '../statistics.js'
import { passCollecting } from './dense-pass.js'

/** A score is an outlier above this many times the mean of the block's scores. */
const outlierFactor = 5

/** The number of scores that are read at once. */
const scoresAtOnce = 2 ** 22

/**
 * The shares of outliers among the scores |w| · ‖x‖ of the layers to prune, by block, as the dense model has them on `windows`.
 * `layers`: their names below the blocks' prefixes; `step` is called after each part of the work and may throw.
 */
export async function outliersOfBlocks(
  engine: Engine,
  layers: readonly ReadonlySet<string>[],
  windows: readonly Int32Array[],
  { step, offload }: { step: (block: number) => void; offload?: Offload | undefined },
): Promise<Map<number, number>> {
  const { device } = engine
  const count = layers.findLastIndex((names) => names.size > 0) + 1
  const groups = batchedByLength(windows, (length) => engine.windowsPerBatch(length))
  const batches = engine.embed(groups, offload)
  const shares = new Map<number, number>()
  try {
    for (const [index, weights] of engine.blocks(count)) {
      const statistics = new Statistics(device, squareSums, 1, (name) => layers[index]!.has(name))
      const groups: GroupStatistics[] = []
      try {
        const options = { step: () => step(index), offload }
        await passCollecting(engine, index, weights, batches, statistics, options)
        groups.push(...statistics.takeAll())
        if (groups.length > 0) shares.set(index, await shareOfOutliers(device, weights, groups))
        step(index)
      } finally {
        statistics.dispose()
        for (const { sum } of groups) sum.dispose()
      }
    }
    return shares
  } finally {
    for (const { hidden } of batches) hidden.dispose()
  }
}

async function shareOfOutliers(
  device: Device,
  weights: BlockWeights,
  groups: readonly GroupStatistics[],
): Promise<number> {
  let [sum, count] = [0, 0]
  await eachScores(device, weights, groups, (scores) => {
    count += scores.length
    for (const score of scores) sum += score
  })
  if (!Number.isFinite(sum)) {
    const message = `${weights.spec.prefix}: the scores |w| · ‖x‖ are not finite: weights or activations hold NaN or infinity`
    throw new SparseGptError('NON_FINITE', message)
  }
  const threshold = (outlierFactor * sum) / count
  let outliers = 0
  await eachScores(device, weights, groups, (scores) => {
    for (const score of scores) if (score > threshold) outliers++
  })
  return outliers / count
}

/** Hands over the scores of all layers, some rows of a matrix at a time. */
async function eachScores(
  device: Device,
  weights: BlockWeights,
  groups: readonly GroupStatistics[],
  take: (scores: Float32Array) => void,
): Promise<void> {
  for (const { names, sum } of groups) {
    for (const name of names) {
      const made: Tensor[] = []
      try {
        await device.within(made, async () => {
          const matrix = weights.linear(name).solving()
          made.push(matrix)
          const rows = Math.max(1, Math.floor(scoresAtOnce / matrix.width))
          for (let first = 0; first < matrix.rows; first += rows) {
            const part = device.adopt(matrix.rowRange(first, Math.min(rows, matrix.rows - first)))
            const scores = device.scores(part, sum)
            take(await device.readFloat32(scores))
            scores.dispose()
          }
        })
      } finally {
        for (const tensor of made) tensor.dispose()
      }
    }
  }
}
