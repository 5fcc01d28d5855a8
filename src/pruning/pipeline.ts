import { SparseGptError } from '../errors.js'
import type { MaskFile } from '../files/mask-file.js'
import type { Architecture } from '../models/architecture.js'
import type { Engine, Offload } from '../models/engine.js'
import type { LinearSpec } from '../models/specs.js'
import type { ReconstructionSettings } from '../training/reconstruction.js'
import type { Work } from '../native/device.js'
import { batched } from '../text/windows.js'
import { allocate } from './allocation/allocation.js'
import { recipeChoices, shareOf, type Allocation } from './allocation/recipe.js'
import { BlockPruner } from './block-pruner.js'
import type { BlockDestination } from './destination.js'
import { methodNamed, needsDenseStream, type PruningMethod } from './methods/methods.js'
import type { MethodSettings, Pattern } from './options.js'
import { ProgressMeter } from './progress.js'
import type { LayerReport, PruneProgress } from './report.js'
import { Streams } from './streams.js'

/** Which layers of a model are to be pruned. */
export interface LayerSelection {
  sparsity?: number | undefined
  pattern?: Pattern | undefined
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
    const { prefix, linears } = architecture.block(index)
    return linears
      .map((linear) => ({ ...linear, name: prefix + linear.name }))
      .filter(({ name }) => (o.include?.test(name) ?? true) && !(o.exclude?.test(name) ?? false))
  })
  const all = blocks.flat()
  if (all.length === 0) {
    const { prefix, linears } = architecture.block(o.minBlock)
    const message = `prune: include and exclude leave no layer to prune; names are like ${prefix}${linears[0]?.name ?? ''}`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (typeof o.allocation === 'object') recipeChoices(o.allocation, blocks, o.sparsity)
  const m = o.pattern?.m ?? 1
  const unfit = all.find(({ columns }) => columns % m !== 0)
  if (unfit) {
    const message = `prune: option pattern: ${unfit.name} has ${unfit.columns} columns, which ${m} does not divide: give another pattern or exclude the layer`
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
  /** The share of the dense stream in a dense target. */
  alpha: number
  /** Whether the kept weights are fitted after the method has pruned. */
  refit: boolean
  /** How every block is fitted to the dense model once it is pruned, if it is. */
  reconstruct?: ReconstructionSettings | undefined
  /** Moves activations out of the device's memory while they wait. */
  offload?: Offload | undefined
  /** The work of the whole run, for the progress. */
  work?: Work | undefined
  onProgress?: ((progress: PruneProgress) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Prunes the model block by block: every block sees the outputs of the pruned blocks before it. `layers`: selectLayers();
 * `windows`: the calibration text's, all of one length. Blocks that `destination` has finished already are only passed.
 */
export async function pruneBlocks(
  engine: Engine,
  { method, work, onProgress, signal, ...o }: PipelineOptions,
  layers: LinearSpec[][],
  windows: readonly Int32Array[],
  destination: BlockDestination,
): Promise<LayerReport[]> {
  const { device } = engine
  const last = layers.findLastIndex((block) => block.length > 0)
  const groups = batched(windows, engine.windowsPerBatch(windows[0]?.length ?? 1))
  const meter = new ProgressMeter(device, last + 1, work, onProgress, signal)
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
  const options = { ...o, ...rest }
  const dense = needsDenseStream(o)
  const streams = new Streams(engine, engine.embed(groups, o.offload), { dense, offload: o.offload })
  try {
    for (const [index, weights] of engine.blocks(last + 1)) {
      meter.block = index
      const selected = new Set(layers[index]?.map(({ name }) => name.slice(weights.spec.prefix.length)))
      if (selected.size > 0 && index >= finished.length) {
        const pruner = new BlockPruner(engine, options, index, weights, selected)
        const layers = await pruner.run(streams, { outputs: index < last })
        if (allocation !== 'uniform') for (const layer of layers) layer.target = shareOf(choices(layer.name))
        await destination.finishBlock({ layers, shares })
        reports.push(...layers)
      } else {
        const step = () => meter.step('forward')
        await streams.pass(index, weights, { changed: selected.size > 0, step })
        if (index >= finished.length) await destination.finishBlock({ layers: [], shares })
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
