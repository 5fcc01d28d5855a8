import { SparseGptError } from '../errors.js'
import type { MaskFile } from '../files/mask-file.js'
import type { Architecture } from '../models/architecture.js'
import type { Engine, Offload } from '../models/engine.js'
import { namedLinears, type LinearSpec } from '../models/specs.js'
import type { ReconstructionSettings } from '../training/reconstruction.js'
import { partOf } from '../native/communicator.js'
import { batchedByLength } from '../text/windows.js'
import { allocate } from './allocation/allocation.js'
import { recipeChoices, shareOf, type Allocation } from './allocation/recipe.js'
import { BlockPruner } from './block-pruner.js'
import type { BlockDestination } from './destination.js'
import { methodNamed, needsDenseStream } from './methods/methods.js'
import type { PruningMethod } from './methods/names.js'
import { defaultAlpha, type MethodSettings, type Pattern } from './options.js'
import type { ProgressMeter } from './progress.js'
import type { LayerReport } from './report.js'
import type { Ranks } from './ranks.js'
import { Streams } from './streams.js'

/** Which layers of a model are to be pruned. */
export interface LayerSelection {
  sparsity?: number | undefined
  pattern?: Pattern | undefined
  groupSize?: number | undefined
  /** How the goal is spread; default 'uniform'. */
  allocation?: Allocation | undefined
  include?: RegExp | undefined
  exclude?: RegExp | undefined
  minBlock: number
  maxBlock?: number | undefined
}

/** The layers to prune of every block, under their checkpoint names. Throws INVALID_OPTION. */
export function selectLayers(architecture: Architecture, o: LayerSelection): LinearSpec[][] {
  const end = Math.min(o.maxBlock ?? architecture.blockCount, architecture.blockCount)
  if (o.minBlock >= end) {
    const range = `minBlock ${o.minBlock}, maxBlock ${o.maxBlock ?? 'not given'}`
    const message = `prune: ${range} leave none of the model's ${architecture.blockCount} blocks (minBlock < maxBlock is needed)`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  const blocks = Array.from({ length: architecture.blockCount }, (_, index): LinearSpec[] => {
    if (index < o.minBlock || index >= end) return []
    return namedLinears(architecture.block(index)).filter(
      ({ name }) => (o.include?.test(name) ?? true) && !(o.exclude?.test(name) ?? false),
    )
  })
  const all = blocks.flat()
  if (all.length === 0) {
    const [first] = namedLinears(architecture.block(o.minBlock))
    const message = `prune: include and exclude leave no layer to prune; names are like ${first?.name ?? ''}`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (typeof o.allocation === 'object') recipeChoices(o.allocation, blocks, o.sparsity)
  const m = o.pattern?.m ?? 1
  const unfit = all.find(({ columns }) => columns % m !== 0)
  if (unfit) {
    const message = `prune: option pattern: ${unfit.name} has ${unfit.columns} columns, which ${m} does not divide: give another pattern or exclude the layer`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  const { groupSize = 1 } = o
  const ungrouped = all.find(({ columns }) => columns % groupSize !== 0)
  if (ungrouped) {
    const message = `prune: option groupSize: ${ungrouped.name} has ${ungrouped.columns} columns, which ${groupSize} does not divide: give another size or exclude the layer`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  return blocks
}

export interface PipelineOptions extends MethodSettings {
  method: PruningMethod
  sparsity?: number | undefined
  pattern?: Pattern | undefined
  /** How the goal is spread over the layers; default 'uniform'. */
  allocation?: Allocation | undefined
  masks?: MaskFile | undefined
  sequential: 'block' | 'layer'
  /** What a layer's outputs are to come near: its own for the pruned stream's inputs, or also those of the dense model. */
  target: 'own' | 'dense'
  /** The share of the dense stream in a dense target; default 0.5. */
  alpha?: number | undefined
  /** The dense model on the same device; default: the model itself as it is before it is pruned. */
  dense?: Engine | undefined
  /** Whether the kept weights are fitted after the method has pruned. */
  refit: boolean
  /** How every block is fitted to the dense model once it is pruned, if it is. */
  reconstruct?: ReconstructionSettings | undefined
  /** Moves activations out of the device's memory while they wait. */
  offload?: Offload | undefined
  /** The ranks that the work is dealt to, if there are several. */
  ranks?: Ranks | undefined
  /** The number of parts of the windows whose sums are added in pairs; default one for each rank. */
  windowGroups?: number | undefined
}

/** The number of blocks that are gone through to prune `layers`, those of selectLayers(). */
export const blocksToPass = (layers: readonly (readonly LinearSpec[])[]): number =>
  layers.findLastIndex((block) => block.length > 0) + 1

/** The windows that this process passes, by parts whose sums are added in pairs. Throws INVALID_OPTION. */
function partsOf(
  windows: readonly Int32Array[],
  { ranks, windowGroups }: Pick<PipelineOptions, 'ranks' | 'windowGroups'>,
): (readonly Int32Array[])[] {
  const { rank, size } = ranks ?? { rank: 0, size: 1 }
  const parts = windowGroups ?? size
  if (windows.length > 0 && windows.length < parts) {
    const message = `prune: option samples: ${windows.length} windows are too few for ${parts} ${windowGroups === undefined ? 'ranks' : 'window groups'}: each takes one at least`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (!Number.isInteger(Math.log2(parts / size))) {
    const message = `prune: option windowGroups: ${parts} groups cannot be dealt to ${size} ${size === 1 ? 'process' : 'ranks'}: each takes 1, 2, 4, 8 … groups`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  const all = Array.from({ length: parts }, (_, part) => partOf(windows, { rank: part, size: parts }))
  return partOf(all, { rank, size })
}

/**
 * Prunes the model block by block: every block sees the outputs of the pruned blocks before it. `layers`: selectLayers();
 * `windows`: the calibration text's; `meter`: for blocksToPass(). Blocks that `destination` has finished already are
 * only passed. Several ranks are all handed all windows.
 */
export async function pruneBlocks(
  engine: Engine,
  { method, ...o }: PipelineOptions,
  layers: LinearSpec[][],
  windows: readonly Int32Array[],
  destination: BlockDestination,
  meter: ProgressMeter,
): Promise<LayerReport[]> {
  const { device } = engine
  const last = blocksToPass(layers) - 1
  const perBatch = (length: number) => engine.windowsPerBatch(length)
  const parts = partsOf(windows, o).map((part) => batchedByLength(part, perBatch))
  const { finished } = destination
  const reports: LayerReport[] = finished.flatMap(({ layers }) => [...layers])
  if (finished.length > last) return reports
  const allocation = o.allocation ?? 'uniform'
  // What has been measured before any block was pruned.
  const known = { shares: finished[0]?.shares }
  const goal = { ...o, allocation, method, settings: o, meter, ...known }
  const { choices, shares } = await allocate(engine, goal, layers, windows)
  const rest = {
    method: methodNamed(method),
    settings: o,
    choices,
    destination,
    meter,
    samples: windows.length,
  }
  const options = { ...o, alpha: o.alpha ?? defaultAlpha, ...rest }
  const dense = needsDenseStream(o) ? (o.dense ?? engine) : undefined
  const streams = new Streams(engine, parts.flat(), {
    dense,
    offload: o.offload,
    parts: parts.flatMap((batches, i) => batches.map(() => i)),
  })
  try {
    for (const [index, weights] of engine.blocks(last + 1)) {
      meter.block = index
      const selected = new Set(layers[index]?.map(({ name }) => name.slice(weights.spec.prefix.length)))
      const pruned = index < finished.length
      const denseWeights = await streams.denseBlock(index, weights, pruned && selected.size > 0)
      try {
        if (selected.size > 0 && !pruned) {
          const pruner = new BlockPruner(engine, options, index, weights, denseWeights, selected)
          const layers = await pruner.run(streams, { outputs: index < last })
          if (allocation !== 'uniform')
            for (const layer of layers) layer.target = shareOf(choices(layer.name))
          await destination.finishBlock({ layers, shares })
          reports.push(...layers)
        } else {
          await streams.pass(index, weights, denseWeights, () => meter.step('forward'))
          if (!pruned) await destination.finishBlock({ layers: [], shares })
        }
      } finally {
        if (denseWeights !== weights) denseWeights.dispose()
      }
    }
    // What became of the last matrix may still be on the queue.
    await device.synchronize()
    return reports
  } finally {
    streams.dispose()
    // Failures are reported by whoever waited for them; here the queue only has to be empty.
    await device.synchronize().catch(() => undefined)
  }
}
