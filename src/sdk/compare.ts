import * as z from 'zod'
import { abortable } from '../abort.js'
import type { TaskResult } from '../evaluation/evaluate.js'
import { harness } from '../evaluation/tasks.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import type { Engine } from '../models/engine.js'
import type { DeviceName } from '../native/device.js'
import { resolveModel } from '../hub/model-folder.js'
import { deviceName } from '../native/devices.js'
import { parseOptions, path, type PathOrUrl } from '../options.js'
import { checkMeasurementFolder, writeMeasurement } from '../reporting/measurement.js'
import { comparisonPage } from '../reporting/measurement-pages.js'
import { plainOptions } from '../reporting/plain-options.js'
import { textSource, type TextSource } from '../text/source.js'
import { decodeSpeed } from './benchmark/decode.js'
import { engineOf, loadModel } from './model.js'
import { fileBytes } from './pack.js'
import { perplexity } from './perplexity.js'
import { evaluateTasks, taskChoice, type TaskOptions } from './tasks.js'

/** What models are compared by, besides sparsity, size and speed. */
export interface CompareOptions {
  /** The text that the perplexity is measured on, and how much of it; see PerplexityOptions. Default: none. */
  text?: TextSource & { sequenceLength?: number; windows?: number }
  /** The tasks that the models are evaluated on; see TaskOptions. Default: none. */
  tasks?: Pick<TaskOptions, 'tasks' | 'shots' | 'limit' | 'data'>
  /** A folder for the report: sparsegpt-report.json, and charts in sparsegpt-report.html. Default: none. */
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
  /** A function that is called with the share of the work done, in (0, 1], and the model under way. */
  onProgress?: (fraction: number, model: string) => void
  /** A signal that stops the comparison (ABORTED). */
  signal?: AbortSignal
}

/** What was measured of a model. */
export interface ComparedModel {
  /** The folder or hub id, as it was given. */
  model: string
  /** The share of zeros in the matrices of the blocks' linear layers. */
  sparsity: number
  /** The size of the weight files, in bytes. */
  bytes: number
  /** The tokens that are generated per second, one after another. */
  tokensPerSecond: number
  /** The perplexity on the text. */
  perplexity?: number
  /** The results of the tasks, in their order. */
  tasks?: TaskResult[]
}

/** Models side by side. */
export interface CompareReport {
  /** Whose prompts and scoring the tasks have; absent without tasks. */
  harness?: string
  models: ComparedModel[]
}

const callback = <T>() => z.custom<T>((value) => typeof value === 'function').optional()

const atLeastOne = { error: 'must be a list of at least one path' }
const modelPaths = z.array(path, atLeastOne).min(1, atLeastOne)

const schema = z.strictObject({
  text: textSource
    .extend({ sequenceLength: z.int().min(2).optional(), windows: z.int().min(1).optional() })
    .strict()
    .optional(),
  tasks: taskChoice.optional(),
  out: path.optional(),
  force: z.boolean().default(false),
  device: deviceName.default('auto'),
  dtype: z.enum(['float32', 'bfloat16']).default('float32'),
  threads: z.int().min(0).max(1024).default(0),
  onDownload: callback<(progress: DownloadProgress) => void>(),
  onProgress: callback<(fraction: number, model: string) => void>(),
  signal: z.instanceof(AbortSignal).optional(),
})

/**
 * Measures some models, one after the other: sparsity, size and the speed of generation, and where they are asked for perplexity and
 * accuracy on tasks.
 *
 * Throws what loadModel, perplexity and evaluateTasks throw; OUTPUT_EXISTS, WRITE_FAILED.
 */
export async function compare(
  models: readonly PathOrUrl[],
  options: CompareOptions = {},
): Promise<CompareReport> {
  const paths = parseOptions(modelPaths, models, 'compare', 'model')
  const { onProgress, out, force, ...o } = parseOptions(schema, options, 'compare')
  if (out !== undefined) await checkMeasurementFolder({ out, force })
  // A path that leads nowhere is found before hours of work on those before it.
  const { signal, onDownload } = o
  for (const path of paths)
    await resolveModel(path, { ...(signal && { signal }), ...(onDownload && { onDownload }) })
  const results: ComparedModel[] = []
  for (const [i, model] of paths.entries()) {
    const report = (fraction: number) => onProgress?.((i + fraction) / paths.length, model)
    results.push(await measured(model, o, report))
    report(1)
  }
  const result = { ...(o.tasks && { harness }), models: results }
  if (out !== undefined) {
    const { plain } = await plainOptions(options)
    await writeMeasurement(out, 'compare', { ...plain, models: paths }, result, comparisonPage)
  }
  return result
}

async function measured(
  path: string,
  o: Omit<z.output<typeof schema>, 'onProgress' | 'out' | 'force'>,
  report: (fraction: number) => void,
): Promise<ComparedModel> {
  const { text, tasks, device, dtype, threads } = o
  const watched = {
    ...(o.onDownload && { onDownload: o.onDownload }),
    ...(o.signal && { signal: o.signal }),
  }
  const parts = (text ? 1 : 0) + (tasks ? 1 : 0)
  let done = 0
  const onProgress = (fraction: number) => report((done + fraction) / (parts + 1))
  const model = await loadModel(path, { device, dtype, threads, ...watched })
  try {
    const engine = engineOf(model)
    const quality: Pick<ComparedModel, 'perplexity' | 'tasks'> = {}
    if (text) {
      quality.perplexity = (await perplexity(model, { ...given(text), ...watched, onProgress })).perplexity
      done++
    }
    if (tasks) {
      quality.tasks = (await evaluateTasks(model, { ...given(tasks), ...watched, onProgress })).results
      done++
    }
    const sparsity = await engine.job(o.signal, (signal) => linearSparsity(engine, signal))
    const bytes = await fileBytes(engine.checkpoint)
    const tokensPerSecond = await engine.job(o.signal, (signal) => decodeSpeed(engine, signal))
    return { model: path, sparsity, bytes, tokensPerSecond, ...quality }
  } finally {
    await model.dispose()
  }
}

/** The share of zeros in the matrices of the linear layers of all blocks. */
async function linearSparsity(engine: Engine, signal: AbortSignal): Promise<number> {
  const { device } = engine
  let [zeros, elements] = [0, 0]
  for (const [, weights] of engine.blocks()) {
    for (const { name } of weights.spec.linears) {
      abortable(signal)
      const { matrix } = weights.linear(name)
      const count = device.tidy(() => device.countZeros(matrix))
      zeros += (await device.read(count))[0] ?? 0
      count.dispose()
      elements += matrix.rows * matrix.width
    }
  }
  return elements > 0 ? zeros / elements : 0
}

/** The options without those that are undefined. */
function given<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never
}
