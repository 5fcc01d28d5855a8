import { batched } from '../calibration/windows.js'
import type { MaskFile } from '../checkpoint/mask-file.js'
import { SparseGptError } from '../errors.js'
import type { Architecture, LinearSpec } from '../models/architecture.js'
import type { Model, Offload } from '../models/model.js'
import type { Tensor } from '../native/device.js'
import { BlockPruner } from './block-pruner.js'
import type { Destination } from './destination.js'
import type { Pattern } from './options.js'
import { ProgressMeter } from './progress.js'
import type { LayerReport, PruneProgress } from './report.js'
import type { SolverOptions } from './solver.js'

/** Which layers of a model are to be pruned. */
export interface LayerSelection {
  pattern?: Pattern | undefined
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
  const m = o.pattern?.m ?? 1
  const unfit = all.find(({ columns }) => columns % m !== 0)
  if (unfit) {
    const message = `prune: option pattern: ${unfit.name} has ${unfit.columns} columns, which ${m} does not divide: give another pattern or exclude the layer`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  return blocks
}

export interface PipelineOptions extends SolverOptions {
  sparsity?: number | undefined
  pattern?: Pattern | undefined
  masks?: MaskFile | undefined
  sequential: 'block' | 'layer'
  /** Moves activations out of the device's memory while they wait. */
  offload?: Offload | undefined
  onProgress?: ((progress: PruneProgress) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Prunes the model block by block: every block sees the outputs of the pruned blocks before it. `layers`: selectLayers();
 * `windows`: the calibration text's, all of one length.
 */
export async function pruneBlocks(
  model: Model,
  o: PipelineOptions,
  layers: LinearSpec[][],
  windows: readonly Int32Array[],
  destination: Pick<Destination, 'store'>,
): Promise<LayerReport[]> {
  const { architecture, device } = model
  const last = layers.findLastIndex((block) => block.length > 0)
  const groups = batched(windows, model.windowsPerBatch(windows[0]?.length ?? 1))
  const tokens = groups.map((group) => group.reduce((sum, window) => sum + window.length, 0))
  const meter = new ProgressMeter(architecture, layers, tokens, o.sequential, o.onProgress, o.signal)
  const store = (name: string, matrix: Tensor) => destination.store(name, matrix)
  const options = { ...o, store, meter, samples: windows.length }
  const reports: LayerReport[] = []
  const batches = model.embed(groups, o.offload)
  try {
    for (const [index, weights] of model.blocks(last + 1)) {
      meter.block = index
      const selected = new Set(layers[index]?.map(({ name }) => name.slice(weights.spec.prefix.length)))
      if (selected.size > 0) {
        const pruner = new BlockPruner(model, options, index, weights, selected)
        reports.push(...(await pruner.run(batches, { outputs: index < last })))
      } else {
        const step = () => meter.batch('forward')
        await model.passBlock(index, weights, batches, { step, offload: o.offload })
      }
    }
    return reports
  } finally {
    for (const { hidden } of batches) hidden.dispose()
    // Failures are reported by whoever waited for them; here the queue only has to be empty.
    await device.synchronize().catch(() => undefined)
  }
}
