import * as z from 'zod'
import { abortable } from '../abort.js'
import type { Engine } from '../models/engine.js'
import { parseOptions, path } from '../options.js'
import { damageOfParts } from '../pruning/allocation/sensitivity.js'
import { methodNamed, methodOptions } from '../pruning/methods/methods.js'
import { methodNames, type PruningMethod } from '../pruning/methods/names.js'
import { samples } from '../pruning/options.js'
import { pattern } from '../pruning/pattern.js'
import { selectLayers } from '../pruning/pipeline.js'
import { checkMeasurementFolder, writeMeasurement } from '../reporting/measurement.js'
import { sensitivityPage } from '../reporting/measurement-pages.js'
import { plainOptions } from '../reporting/plain-options.js'
import { calibrationSource, calibrationWindows, type CalibrationSource } from '../text/source.js'
import { engineOf, type Model } from './model.js'

/** What is pruned by itself, and how. */
export interface SensitivityOptions {
  /** What is pruned alone: every 'layer' (default) or every 'block'. */
  each?: 'block' | 'layer'
  /** The share of zeros, in (0, 1). Default 0.5. */
  sparsity?: number
  /** The pattern, such as '2:4', in the place of sparsity. */
  pattern?: string
  /** The pruning method. Default 'sparsegpt'. */
  method?: PruningMethod
  /** The calibration text, and what is drawn from it, as for `prune`; the beginnings of the first four windows are what the models are compared on. */
  calibration: CalibrationSource & { samples?: number; sequenceLength?: number; seed?: number }
  /** A folder for the report: sparsegpt-report.json, and the curves in sparsegpt-report.html. Default: none. */
  out?: string
  /** Whether a report that lies in `out` is replaced. Default false. */
  force?: boolean
  /** A function that is called with the number of the block under way, and how many there are. */
  onProgress?: (block: number, blocks: number) => void
  /** A signal that stops the work (ABORTED). */
  signal?: AbortSignal
}

/** What pruning a part of a model alone does to it. */
export interface PartDamage {
  /** The checkpoint name of the layer, or of the block. */
  name: string
  /** The number of the block, from 0. */
  block: number
  /** The layer's name below the block's; 'block' for a whole one. */
  kind: string
  /** The mean divergence KL(dense ‖ pruned) of the next-token distributions, in nats per token. */
  damage: number
}

/** How much each part of a model matters. */
export interface SensitivityReport {
  /** The folder of the model. */
  model: string
  method: PruningMethod
  /** The share of zeros that each part was pruned to. */
  sparsity: number
  each: 'block' | 'layer'
  /** The parts, in the order of the model. */
  parts: PartDamage[]
}

const schema = z
  .strictObject({
    each: z.enum(['block', 'layer']).default('layer'),
    sparsity: z.number().positive().lt(1).optional(),
    pattern: pattern.optional(),
    method: z.enum(methodNames).default('sparsegpt'),
    calibration: calibrationSource
      .extend({ samples, sequenceLength: z.int().min(1).optional(), seed: z.int().default(0) })
      .strict(),
    out: path.optional(),
    force: z.boolean().default(false),
    onProgress: z
      .custom<(block: number, blocks: number) => void>((value) => typeof value === 'function')
      .optional(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .refine(({ sparsity, pattern: given }) => sparsity === undefined || given === undefined, {
    path: ['pattern'],
    message: 'cannot be combined with sparsity: give one of the two',
  })

/**
 * Measures what it does to a model's next-token distributions when each layer, or each block, alone is pruned. The model stays as it is.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_TEXT, NON_FINITE, NOT_POSITIVE_DEFINITE, OUTPUT_EXISTS, WRITE_FAILED,
 * OUT_OF_MEMORY, ABORTED.
 */
export async function sensitivity(model: Model, options: SensitivityOptions): Promise<SensitivityReport> {
  const engine = engineOf(model, 'sensitivity')
  const o = parseOptions(schema, options, 'sensitivity')
  const { out, force } = o
  if (out !== undefined) await checkMeasurementFolder({ out, force })
  const result = await engine.job(o.signal, (signal) => measure(engine, { ...o, signal }))
  if (out !== undefined)
    await writeMeasurement(out, 'sensitivity', (await plainOptions(options)).plain, result, sensitivityPage)
  return result
}

async function measure(engine: Engine, o: z.output<typeof schema>): Promise<SensitivityReport> {
  const { architecture, device } = engine
  const { each, method, sparsity = 0.5 } = o
  const layers = selectLayers(architecture, { minBlock: 0, pattern: o.pattern })
  const { samples: count, seed, sequenceLength, ...text } = o.calibration
  const drawing = { samples: count, seed, sequenceLength: engine.sequenceLength(sequenceLength) }
  const { windows } = await calibrationWindows(engine, text, { ...drawing, signal: o.signal })
  const prefix = (block: number) => architecture.block(block).prefix
  const selected = layers.map(
    (own, block) => new Set(own.map(({ name }) => name.slice(prefix(block).length))),
  )
  const choice = o.pattern ? { pattern: o.pattern } : { sparsity }
  try {
    const parts = await damageOfParts(engine, selected, windows, [choice], {
      each,
      method: methodNamed(method),
      settings: methodOptions.parse({}),
      refit: false,
      step: (block) => {
        o.onProgress?.(Math.min(block + 1, architecture.blockCount), architecture.blockCount)
        abortable(o.signal)
      },
    })
    return {
      model: engine.folder,
      method,
      sparsity: o.pattern ? o.pattern.n / o.pattern.m : sparsity,
      each,
      parts: parts.map(({ block, layer, damage }) => ({
        name: layer === undefined ? prefix(block).replace(/\.$/, '') : prefix(block) + layer,
        block,
        kind: layer ?? 'block',
        damage,
      })),
    }
  } finally {
    // Failures are reported by whoever waited for them; here the queue only has to be empty.
    await device.synchronize().catch(() => undefined)
  }
}
