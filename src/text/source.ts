import * as z from 'zod'
import { abortable } from '../abort.js'
import { systemCode } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'
import { path } from '../options.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import { datasetNames, datasetText, openC4, type DatasetName } from './dataset.js'
import { documentFormat } from './documents.js'
import { PythonRandom } from './python-random.js'
import { readText } from './text.js'
import { isTokenFile, readTokenFile } from './token-file.js'
import { longestText } from './tokenizer.js'
import { tokenIds, type Vocabulary } from './vocabulary.js'
import { drawWindows, splitWindows } from './windows.js'

/** Where text comes from: a named data set, a file, or token ids. Exactly one is given. */
export interface TextSource {
  /**
   * The name of a data set, which is downloaded from the hub unless its cache has it, and prepared as the paper's code
   * does.
   */
  dataset?: DatasetName
  /**
   * The path of a file. Of a .jsonl, .ndjson, .json or .parquet file the field `textField` of every row is taken, of a
   * .safetensors file the token ids that saveTokens wrote, of any other its whole text. All but the last two may be packed:
   * .jsonl.gz, .txt.gz.
   */
  file?: string
  /** The field of a row, or the column, that holds the text; only for files of rows. Default: 'text'. */
  textField?: string
  /** The token ids of a text, in the place of the text itself. */
  tokens?: ArrayLike<number>
  /** The function that is called while a data set is downloaded. */
  onDownload?: (progress: DownloadProgress) => void
}

/**
 * The schema of a TextSource, to be extended by the options of what reads it; it does not check that exactly one is
 * given.
 */
export const textSource = z.object({
  dataset: z.enum(datasetNames).optional(),
  file: path.optional(),
  textField: z.string().min(1).optional(),
  tokens: z
    .custom<ArrayLike<number>>(
      (value) => Array.isArray(value) || (ArrayBuffer.isView(value) && 'length' in value),
      'must be an array of token ids',
    )
    .optional(),
  onDownload: z
    .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function')
    .optional(),
})

type Source = z.output<typeof textSource>

interface ReadOptions {
  signal?: AbortSignal | undefined
  /** What reading and encoding may take of memory, in bytes, processes included. Default: no limit. */
  memory?: number | undefined
}

interface WindowOptions extends ReadOptions {
  samples: number
  sequenceLength: number
  seed: number
}

/** What a calibration text gives. */
interface CalibrationWindows {
  /** The windows: `samples` of them, of `sequenceLength` token ids each. */
  windows: Int32Array[]
  /** The token ids that the windows were drawn from; absent when they are not of one text. */
  text?: Int32Array
}

/**
 * The windows of a calibration text, drawn as the paper's code draws them: from one text, or, of C4, each from a document
 * of its own that is longer than a window. A file of windows gives its first ones.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, INVALID_TEXT (too short), INVALID_CHECKPOINT (tokenizer), DOWNLOAD_FAILED,
 * WRITE_FAILED, OUT_OF_MEMORY, ABORTED.
 */
export async function calibrationWindows(
  model: Vocabulary,
  source: Source,
  options: WindowOptions,
): Promise<CalibrationWindows> {
  if (checkedKind(source) === 'dataset' && source.dataset === 'c4')
    return drawDocuments(model, source, options)
  const { ids, windowLength } = await readSource(model, source, 'calibration', options)
  if (windowLength !== undefined) return takeWindows(source.file ?? '', ids, windowLength, options)
  return { windows: drawWindows(ids, options), text: ids }
}

/**
 * All windows of a calibration text, one after the other; of C4, which has no end, as many as c4Windows. Throws as
 * calibrationWindows does.
 */
export async function allWindows(
  model: Vocabulary,
  source: Source,
  options: Omit<WindowOptions, 'samples'>,
): Promise<Int32Array[]> {
  if (checkedKind(source) === 'dataset' && source.dataset === 'c4')
    return (await drawDocuments(model, source, { ...options, samples: c4Windows })).windows
  const { ids } = await readSource(model, source, 'calibration', options)
  return splitWindows(ids, options.sequenceLength)
}

/**
 * The token ids of an evaluation text, to be split into windows of `sequenceLength`: of C4, as many as the paper's code
 * keeps; else all.
 *
 * Throws as calibrationWindows does.
 */
export async function evaluationTokens(
  model: Vocabulary,
  source: Source,
  options: ReadOptions & { sequenceLength: number },
): Promise<Int32Array> {
  checkedKind(source)
  const { ids } = await readSource(model, source, 'evaluation', options)
  return source.dataset === 'c4' ? ids.slice(0, c4Windows * options.sequenceLength) : ids
}

const c4Windows = 256

function checkedKind(source: Source): 'dataset' | 'file' | 'tokens' {
  const given = (['dataset', 'file', 'tokens'] as const).filter((name) => source[name] !== undefined)
  const [kind] = given
  if (kind === undefined || given.length > 1) {
    throw new SparseGptError('INVALID_OPTION', 'option file: give exactly one of dataset, file and tokens')
  }
  if (
    source.textField !== undefined &&
    (kind !== 'file' || documentFormat(source.file ?? '') === undefined)
  ) {
    const what = kind === 'file' ? `${source.file} has no rows` : `${kind} has no such choice`
    const message = `option textField: ${what}; a .jsonl, .json or .parquet file has`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  return kind
}

async function readSource(
  model: Vocabulary,
  source: Source,
  use: 'calibration' | 'evaluation',
  { signal, memory }: ReadOptions,
): Promise<{ ids: Int32Array; windowLength?: number }> {
  if (source.tokens !== undefined) {
    return { ids: tokenIds(source.tokens, model.vocabularySize) }
  }
  const maxLength = memory === undefined ? undefined : longestText(memory)
  if (source.dataset !== undefined) {
    const { onDownload } = source
    const text = await datasetText(source.dataset, use, { onDownload, signal, maxLength })
    return { ids: await encode(model, text, { signal, memory }) }
  }
  const file = source.file ?? ''
  if (isTokenFile(file)) return readTokenFile(file, model.vocabularySize)
  const text = await readText(file, { textField: source.textField, maxLength }).catch((error: unknown) => {
    throw unknownDataset(file, error) ?? error
  })
  abortable(signal)
  return { ids: await encode(model, text, { signal, memory }) }
}

/** The error for a file that does not exist and whose name is that of no file, but might be meant for a data set. */
function unknownDataset(file: string, error: unknown): SparseGptError | undefined {
  const missing = error instanceof SparseGptError && systemCode(error.cause) === 'ENOENT'
  if (!missing || !/^[\w-]+$/.test(file)) return undefined
  const message = `${file} is neither a data set nor a file: the data sets are ${datasetNames.join(', ')}`
  return new SparseGptError('FILE_NOT_FOUND', message, { cause: error })
}

/**
 * The token ids of a text as one sequence, post-processor included. Throws INVALID_CHECKPOINT for an id that the model
 * lacks, INVALID_TEXT, OUT_OF_MEMORY, ABORTED.
 */
async function encode(model: Vocabulary, text: string, options: ReadOptions): Promise<Int32Array> {
  const ids = await (await model.tokenizer()).encode(text, options)
  const largest = ids.reduce((a, b) => Math.max(a, b), 0)
  if (largest >= model.vocabularySize) {
    const message = `${model.folder}: the tokenizer gives id ${largest}, but the model's vocabulary has ${model.vocabularySize} entries`
    throw new SparseGptError('INVALID_CHECKPOINT', message)
  }
  return ids
}

/** The windows of C4: documents are drawn until one is longer than a window, then a window of it. */
async function drawDocuments(
  model: Vocabulary,
  source: Source,
  options: WindowOptions,
): Promise<CalibrationWindows> {
  const { samples, sequenceLength, signal, memory } = options
  const random = new PythonRandom(options.seed)
  const store = await openC4({ onDownload: source.onDownload, signal })
  const tooShort = new Set<number>()
  const windows: Int32Array[] = []
  try {
    while (windows.length < samples) {
      abortable(signal)
      if (tooShort.size === store.count) {
        const message = `none of the ${store.count} documents of C4 has more than ${sequenceLength} tokens: give a shorter sequence length`
        throw new SparseGptError('INVALID_TEXT', message)
      }
      const index = random.randint(0, store.count - 1)
      if (tooShort.has(index)) continue
      const ids = await encode(model, await store.document(index), { signal, memory })
      if (ids.length <= sequenceLength) {
        tooShort.add(index)
        continue
      }
      const offset = random.randint(0, ids.length - sequenceLength - 1)
      windows.push(ids.slice(offset, offset + sequenceLength))
    }
  } finally {
    await store.close()
  }
  return { windows }
}

function takeWindows(
  file: string,
  ids: Int32Array,
  windowLength: number,
  { samples, sequenceLength }: { samples: number; sequenceLength: number },
): CalibrationWindows {
  const count = windowLength === 0 ? 0 : ids.length / windowLength
  if (windowLength !== sequenceLength || count < samples) {
    throw new SparseGptError(
      'INVALID_TEXT',
      `${file} holds ${count} windows of ${windowLength} tokens, but ${samples} of ${sequenceLength} are asked for: give ` +
        'samples and sequenceLength that fit',
    )
  }
  return { windows: splitWindows(ids, windowLength, samples) }
}
