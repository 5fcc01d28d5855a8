import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import type { DeviceName } from '../native/device.js'
import { deviceName } from '../native/devices.js'
import { parseOptions, path } from '../options.js'
import { methodNames, type PruningMethod } from '../pruning/methods/names.js'
import { samples } from '../pruning/options.js'
import { checkMeasurementFolder, writeMeasurement } from '../reporting/measurement.js'
import { sweepPage } from '../reporting/measurement-pages.js'
import { plainOptions } from '../reporting/plain-options.js'
import {
  calibrationSource,
  calibrationWindows,
  evaluationTokens,
  textSource,
  type CalibrationSource,
  type TextSource,
} from '../text/source.js'
import { engineOf, loadModel } from './model.js'
import { perplexity } from './perplexity.js'
import { prune } from './prune.js'

/** What a model is pruned to, how, and what it is measured on. */
export interface SweepOptions {
  /** The shares of zeros to prune to, each in (0, 1). */
  sparsity?: number[]
  /** The patterns to prune to, such as ['2:4', '4:8']. At least one share or pattern is given. */
  patterns?: string[]
  /** The methods. Default: sparsegpt, wanda and magnitude. */
  methods?: PruningMethod[]
  /** The calibration text, and what is drawn from it, as for `prune`. */
  calibration?: CalibrationSource & { samples?: number; sequenceLength?: number; seed?: number }
  /** The text that the perplexity is measured on, and how much of it; see PerplexityOptions. */
  text: TextSource & { sequenceLength?: number; windows?: number }
  /** A folder for the report: sparsegpt-report.json, and the curves in sparsegpt-report.html. Default: none. */
  out?: string
  /** Whether a report that lies in `out` is replaced. Default false. */
  force?: boolean
  /** The device to compute on, as for loadModel. */
  device?: DeviceName
  /** The element type of activations. Default 'float32'. */
  dtype?: 'float32' | 'bfloat16'
  /** The number of threads of the CPU device; 0 (default) for one per core. */
  threads?: number
  /** A function that is called while a model or a data set is downloaded. */
  onDownload?: (progress: DownloadProgress) => void
  /** A function that is called with the share of the work done, in (0, 1], and what is under way. */
  onProgress?: (fraction: number, run: string) => void
  /** A signal that stops the work (ABORTED). */
  signal?: AbortSignal
}

/** One model of a sweep. */
export interface SweepPoint {
  method: PruningMethod
  /** The share of zeros that was asked for. */
  sparsity: number
  /** The pattern, where that was asked for. */
  pattern?: string
  /** The share of zeros that was reached. */
  achieved: number
  perplexity: number
  /** The time of the pruning. */
  seconds: number
}

/** What a model becomes by method and sparsity. */
export interface SweepReport {
  /** The folder or hub id, as it was given. */
  model: string
  /** The perplexity of the dense model. */
  dense: number
  /** The number of windows that were evaluated, and of their tokens. */
  windows: number
  sequenceLength: number
  /** The models, by goal and then by method. */
  points: SweepPoint[]
}

const callback = <T>() => z.custom<T>((value) => typeof value === 'function').optional()

const schema = z
  .strictObject({
    sparsity: z.array(z.number().positive().lt(1)).max(1000).default([]),
    patterns: z
      .array(z.string().regex(/^\d+:\d+$/, 'must be n:m, such as 2:4'))
      .max(1000)
      .default([]),
    methods: z
      .array(z.enum(methodNames))
      .min(1)
      .default(['sparsegpt', 'wanda', 'magnitude'] satisfies PruningMethod[]),
    calibration: calibrationSource
      .extend({ samples, sequenceLength: z.int().min(1).optional(), seed: z.int().default(0) })
      .strict()
      .optional(),
    text: textSource
      .extend({ sequenceLength: z.int().min(2).optional(), windows: z.int().min(1).optional() })
      .strict(),
    out: path.optional(),
    force: z.boolean().default(false),
    device: deviceName.default('auto'),
    dtype: z.enum(['float32', 'bfloat16']).default('float32'),
    threads: z.int().min(0).max(1024).default(0),
    onDownload: callback<(progress: DownloadProgress) => void>(),
    onProgress: callback<(fraction: number, run: string) => void>(),
    signal: z.instanceof(AbortSignal).optional(),
  })
  .refine(({ sparsity, patterns }) => sparsity.length + patterns.length > 0, {
    path: ['sparsity'],
    message: 'give at least one share of zeros, or a pattern',
  })
  .refine(({ methods, calibration }) => calibration || methods.every((method) => method === 'magnitude'), {
    path: ['calibration'],
    message: 'is needed for every method but magnitude: { file }, { tokens } or another source of text',
  })

/**
 * Prunes a model to every share of zeros and every pattern with every method, and measures the perplexity of each result. Nothing of them is
 * kept but the report, which `out` takes too.
 *
 * Throws what loadModel, prune and perplexity throw; OUTPUT_EXISTS, WRITE_FAILED.
 */
export async function sweep(pathOrHubId: string, options: SweepOptions): Promise<SweepReport> {
  const o = parseOptions(schema, options, 'sweep')
  const { out, force, signal, device, dtype, threads } = o
  if (out !== undefined) await checkMeasurementFolder({ out, force })
  const watched = { ...(o.onDownload && { onDownload: o.onDownload }), ...(signal && { signal }) }
  const load = () => loadModel(pathOrHubId, { device, dtype, threads, ...watched })
  const goals = [
    ...o.sparsity.map((sparsity) => ({ sparsity, name: `${(sparsity * 100).toFixed(1)} %` })),
    ...o.patterns.map((pattern) => ({ pattern, name: pattern })),
  ]
  const runs = goals.flatMap((goal) => o.methods.map((method) => ({ goal, method })))
  const report = (done: number, run: string) => o.onProgress?.(done / (runs.length + 1), run)

  const first = await load()
  const { texts, dense } = await (async () => {
    try {
      const read = await readTexts(engineOf(first, 'sweep'), o)
      const measured = await perplexity(first, { ...read.evaluation, ...watched })
      return { texts: read, dense: measured }
    } finally {
      await first.dispose()
    }
  })()
  report(1, 'dense')
  const points: SweepPoint[] = []
  for (const [i, { goal, method }] of runs.entries()) {
    const { name, ...choice } = goal
    const model = await load()
    try {
      const run = `${method}, ${name}`
      const onProgress = ({ fraction }: { fraction: number }) => report(i + 1 + 0.8 * fraction, run)
      const pruned = await prune(model, {
        ...choice,
        method,
        ...(texts.windows && { calibration: { windows: texts.windows } }),
        ...(signal && { signal }),
        onProgress,
      })
      const measured = await perplexity(model, { ...texts.evaluation, ...watched })
      points.push({
        method,
        sparsity: pruned.sparsity.target,
        ...('pattern' in choice && { pattern: choice.pattern }),
        achieved: pruned.sparsity.achieved,
        perplexity: measured.perplexity,
        seconds: pruned.seconds,
      })
      report(i + 2, run)
    } finally {
      await model.dispose()
    }
  }
  const { windows, sequenceLength } = dense
  const result = { model: pathOrHubId, dense: dense.perplexity, windows, sequenceLength, points }
  if (out !== undefined)
    await writeMeasurement(out, 'sweep', (await plainOptions(options)).plain, result, sweepPage)
  return result
}

/** Reads both texts once: the windows of the calibration, and the tokens that are evaluated. */
async function readTexts(engine: ReturnType<typeof engineOf>, o: z.output<typeof schema>) {
  return engine.job(o.signal, async (signal) => {
    const { sequenceLength: wanted, windows: most, ...source } = o.text
    const sequenceLength = engine.sequenceLength(wanted)
    const tokens = await evaluationTokens(engine, source, { sequenceLength, windows: most, signal })
    if (tokens.length < sequenceLength) {
      const message = `sweep: the text has ${tokens.length} tokens, which is less than a window of ${sequenceLength}: give a longer text or a shorter sequenceLength`
      throw new SparseGptError('INVALID_TEXT', message)
    }
    const evaluation = { tokens, sequenceLength, ...(most !== undefined && { windows: most }) }
    if (!o.calibration || o.methods.every((method) => method === 'magnitude')) return { evaluation }
    const { samples: count, seed, sequenceLength: length, ...text } = o.calibration
    const options = { samples: count, seed, sequenceLength: engine.sequenceLength(length), signal }
    return { evaluation, windows: (await calibrationWindows(engine, text, options)).windows }
  })
}
