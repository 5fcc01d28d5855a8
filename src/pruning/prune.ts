import * as z from 'zod'
import { abortable } from '../abort.js'
import { calibrationWindows, textSource, type TextSource } from '../calibration/source.js'
import { batched } from '../calibration/windows.js'
import { saveTokens } from '../calibration/token-file.js'
import { MaskFile } from '../checkpoint/mask-file.js'
import { SparseGptError } from '../errors.js'
import type { LinearSpec } from '../models/architecture.js'
import type { Model } from '../models/model.js'
import { storedShape } from '../models/weights.js'
import type { Tensor } from '../native/device.js'
import { BlockPruner } from './block-pruner.js'
import { FolderDestination, MemoryDestination, type Destination } from './destination.js'
import { checkSelection, parseOptions, pruningOptions, type PruningMethod } from './options.js'
import type { LayerReport, PruneProgress, PruneReport } from './report.js'
import { ProgressMeter } from './progress.js'

export interface CalibrationOptions extends TextSource {
  /** Windows drawn from the text. Default 128. */
  samples?: number
  /** Tokens per window. Default: the model's context, at most 2048. */
  sequenceLength?: number
  /** Of Python's generator, which draws the windows. Default 0. */
  seed?: number
  /** Saves the encoded text (of C4 the windows) to this .safetensors file, which can be given as `file` next time. */
  saveTokens?: string
}

export interface PruneOptions {
  /** Default 'sparsegpt'. */
  method?: PruningMethod
  /** Share of the weights to prune, in [0, 1). Default 0.5 when neither pattern nor mask is given. */
  sparsity?: number
  /** 'n:m': n of every m neighbours in a row are pruned. */
  pattern?: string
  /** A safetensors file of masks (BOOL, U8 or I8; 1 = prune), named and shaped as the weights to prune. */
  mask?: string
  /** The text whose activations the pruning preserves. Not needed for magnitude. */
  calibration?: CalibrationOptions
  /** Columns whose mask is chosen together (sparsegpt). Default 128. */
  blockSize?: number
  /** Added to the diagonal of the Hessian, as a share of its mean (sparsegpt). Default 0.01. */
  dampening?: number
  /** Rounds the kept weights to 2^bits levels per row as well (sparsegpt). */
  bits?: number
  /**
   * 'block' (default, the paper's): all linears of a block see the dense block's activations, and the block is run again
   * pruned. 'layer': each group of linears sees the activations of the groups pruned before it; one forward pass less.
   */
  sequential?: 'block' | 'layer'
  /** Prune only layers whose name (such as 'model.layers.0.mlp.up_proj') it matches. */
  include?: RegExp | string
  /** Leave layers dense whose name it matches. */
  exclude?: RegExp | string
  /** The first block to prune, from 0. Default 0. */
  minBlock?: number
  /** The block to stop before. Default: all are pruned. */
  maxBlock?: number
  /** Folder for the pruned model, in the source's layout and dtypes. Without it the model is pruned in memory only. */
  out?: string
  /** Replace `out` if it exists. */
  force?: boolean
  onProgress?: (progress: PruneProgress) => void
  signal?: AbortSignal
}

const pattern = z
  .union([z.instanceof(RegExp), z.string()])
  .transform((value, context) => {
    try {
      return new RegExp(value)
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

const schema = pruningOptions
  .extend({
    mask: z.string().min(1).optional(),
    calibration: textSource
      .extend({
        samples: z.int().min(1).max(1_000_000).default(128),
        sequenceLength: z.int().min(1).optional(),
        seed: z.int().default(0),
        saveTokens: z.string().endsWith('.safetensors').optional(),
      })
      .strict()
      .optional(),
    sequential: z.enum(['block', 'layer']).default('block'),
    include: pattern,
    exclude: pattern,
    minBlock: z.int().min(0).default(0),
    maxBlock: z.int().min(1).optional(),
    out: z.string().min(1).optional(),
    force: z.boolean().default(false),
    onProgress: z
      .custom<(progress: PruneProgress) => void>((value) => typeof value === 'function')
      .optional(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .strict()
  .superRefine((options, context) => {
    checkSelection(options, context)
    if (options.method !== 'magnitude' && !options.calibration) {
      const message = `is needed for method "${options.method}": { file }, { tokens } or another source of text`
      context.addIssue({ code: 'custom', path: ['calibration'], message })
    }
  })

/**
 * Prunes a model block by block with SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774), Wanda or by magnitude. With
 * `out` the pruned model appears there, complete or not at all, and `model` uses it from then on.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_TEXT (calibration text shorter than a window), NON_FINITE,
 * NOT_POSITIVE_DEFINITE, OUTPUT_EXISTS, WRITE_FAILED, INVALID_CHECKPOINT, OUT_OF_MEMORY, ABORTED.
 */
export async function prune(model: Model, options: PruneOptions): Promise<PruneReport> {
  const start = performance.now()
  const o = parseOptions(schema, options, 'prune')
  const source = model.folder
  const layers = selectLayers(model, o)
  const masks = o.mask === undefined ? undefined : await openMasks(o.mask, layers)
  abortable(o.signal)
  const windows = await drawCalibration(model, o)
  abortable(o.signal)
  const destination =
    o.out === undefined ? new MemoryDestination(model) : await FolderDestination.create(model, o.out, o.force)
  try {
    const reports = await pruneBlocks(model, o, layers, masks, windows, destination)
    abortable(o.signal)
    await destination.commit()
    const weights = reports.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
    const achieved =
      reports.reduce((sum, layer) => sum + layer.sparsity * layer.rows * layer.columns, 0) / weights
    return {
      model: source,
      out: destination.folder,
      method: o.method,
      sparsity: { target: target(o, achieved), achieved },
      seconds: (performance.now() - start) / 1000,
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
      layers: reports,
    }
  } catch (error) {
    await destination.abort()
    throw error
  }
}

type Parsed = z.output<typeof schema>

/** The layers to prune of every block, under their checkpoint names. Throws INVALID_OPTION. */
function selectLayers(model: Model, o: Parsed): LinearSpec[][] {
  const { architecture } = model
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

async function openMasks(file: string, layers: LinearSpec[][]): Promise<MaskFile> {
  const masks = await MaskFile.open(file)
  for (const linear of layers.flat()) masks.require(`${linear.name}.weight`, storedShape(linear))
  return masks
}

async function drawCalibration(model: Model, o: Parsed): Promise<Int32Array[]> {
  if (!o.calibration || o.method === 'magnitude') return []
  const sequenceLength = model.sequenceLength(o.calibration.sequenceLength)
  const { samples, seed } = o.calibration
  const options = { samples, seed, sequenceLength, signal: o.signal }
  const { windows, text } = await calibrationWindows(model, o.calibration, options)
  if (o.calibration.saveTokens !== undefined) await saveTokens(o.calibration.saveTokens, text ?? windows)
  return windows
}

/** The share asked for; a mask asks for what it marks. */
function target(o: Parsed, achieved: number): number {
  if (o.pattern) return o.pattern.n / o.pattern.m
  return o.mask === undefined ? (o.sparsity ?? 0.5) : achieved
}

async function pruneBlocks(
  model: Model,
  o: Parsed,
  layers: LinearSpec[][],
  masks: MaskFile | undefined,
  windows: Int32Array[],
  destination: Destination,
): Promise<LayerReport[]> {
  const { architecture, device } = model
  const last = layers.findLastIndex((block) => block.length > 0)
  const groups = batched(windows, model.windowsPerBatch(windows[0]?.length ?? 1))
  const tokens = groups.map((group) => group.reduce((sum, window) => sum + window.length, 0))
  const meter = new ProgressMeter(architecture, layers, tokens, o.sequential, o.onProgress, o.signal)
  const store = (name: string, matrix: Tensor) => destination.store(name, matrix)
  const options = { ...o, masks, store, meter, samples: windows.length }
  const reports: LayerReport[] = []
  const batches = model.embed(groups)
  try {
    for (const [index, weights] of model.blocks(last + 1)) {
      meter.block = index
      const selected = new Set(layers[index]?.map(({ name }) => name.slice(weights.spec.prefix.length)))
      if (selected.size > 0) {
        const pruner = new BlockPruner(model, options, index, weights, selected)
        reports.push(...(await pruner.run(batches, { outputs: index < last })))
      } else {
        await model.passBlock(index, weights, batches, () => meter.batch('forward'))
      }
    }
    return reports
  } finally {
    for (const { hidden } of batches) hidden.dispose()
    // Failures are reported by whoever waited for them; here the queue only has to be empty.
    await device.synchronize().catch(() => undefined)
  }
}
