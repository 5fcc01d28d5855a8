import * as z from 'zod'
import { abortable } from '../abort.js'
import { reason, systemCode } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'
import { path, type PathOrUrl } from '../options.js'
import type { DownloadProgress } from '../hub/snapshot.js'
import { datasetNames, datasetParts, isC4Shard, openC4, type DatasetName } from './dataset.js'
import { documentFormat, readRows } from './documents.js'
import { PythonRandom } from './python-random.js'
import { joinDocuments, textParts, textReadError } from './text.js'
import type { ChatMessage } from './tokenizer.js'
import { isTokenFile, readTokenFile } from './token-file.js'
import { tokenIds, type Vocabulary } from './vocabulary.js'
import { drawWindows, splitWindows } from './windows.js'

/** Where text comes from: a named data set, a file, text, conversations, or token ids. Exactly one is given. */
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
  file?: PathOrUrl
  /** The field of a row, or the column, that holds the text; only for files of rows. Default: 'text'. */
  textField?: string
  /**
   * Whether the rows of a .jsonl, .ndjson or .json file are conversations, whose field `messages` the model's chat template writes
   * out. Default false.
   */
  chat?: boolean
  /** A text, or documents that are joined with an empty line. */
  text?: string | Iterable<string> | AsyncIterable<string>
  /** Conversations, each a list of messages that the model's chat template writes out; or one. */
  messages?: readonly ChatMessage[] | readonly (readonly ChatMessage[])[]
  /** The token ids of a text, in the place of the text itself. */
  tokens?: ArrayLike<number>
  /** The function that is called while a data set is downloaded. */
  onDownload?: (progress: DownloadProgress) => void
  /** The function that is told, while the text is encoded, the share of its file that has been read, in (0, 1]. */
  onEncode?: (fraction: number) => void
}

const tokenList = z.custom<ArrayLike<number>>(
  (value) => Array.isArray(value) || (ArrayBuffer.isView(value) && 'length' in value),
  'must be an array of token ids',
)

const isIterable = (value: unknown): boolean =>
  typeof value === 'object' &&
  value !== null &&
  [Symbol.iterator, Symbol.asyncIterator].some((name) => typeof Reflect.get(value, name) === 'function')

/** Whether a value, made of JSON's kinds, does not hold itself. */
function hasEnd(value: unknown): boolean {
  try {
    JSON.stringify(value)
    return true
  } catch {
    return false
  }
}

// What else a message has is for the template, which is rendered in another process.
const conversation = z
  .array(
    z
      .object({ role: z.string(), content: z.union([z.string(), z.null(), z.array(z.json())]) })
      .catchall(z.json()),
  )
  .min(1)
  .refine(hasEnd)

/**
 * The schema of a TextSource, to be extended by the options of what reads it; it does not check that exactly one is
 * given.
 *
 * @internal
 */
export const textSource = z.object({
  dataset: z.enum(datasetNames).optional(),
  file: path.optional(),
  textField: z.string().min(1).optional(),
  tokens: tokenList.optional(),
  chat: z.boolean().optional(),
  text: z
    .custom<string | Iterable<string> | AsyncIterable<string>>(
      (value) => typeof value === 'string' || isIterable(value),
      'must be a text, or documents in a list or another iterable',
    )
    .optional(),
  messages: z
    .union([conversation.transform((one) => [one]), z.array(conversation).min(1)], {
      error: 'must be a list of { role, content }, or of such lists, of JSON values',
    })
    .optional(),
  onDownload: z
    .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function')
    .optional(),
  onEncode: z.custom<(fraction: number) => void>((value) => typeof value === 'function').optional(),
})

type Source = z.output<typeof textSource>

/** A source among several. */
export interface WeightedSource extends TextSource {
  /** The share of the windows that are of this source, as a multiple of those of a source of weight 1. Default 1. */
  weight?: number
}

/** Where calibration windows come from: one source of text, several, or sequences of token ids as they are. */
export interface CalibrationSource extends TextSource {
  /** Several sources, in the place of one. The windows of each are drawn as if it were alone. */
  sources?: readonly WeightedSource[]
  /** Sequences of token ids, each by itself, in the place of what is drawn; their lengths may differ. */
  windows?: readonly ArrayLike<number>[]
}

/**
 * The schema of a CalibrationSource, as textSource is that of a TextSource.
 *
 * @internal
 */
export const calibrationSource = textSource.extend({
  sources: z
    .array(textSource.extend({ weight: z.number().gt(0).default(1) }).strict())
    .min(1)
    .optional(),
  windows: z.array(tokenList).min(1).optional(),
})

type Calibration = z.output<typeof calibrationSource>

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
  /** The windows: `samples` of them, of `sequenceLength` token ids each, unless they were given. */
  windows: Int32Array[]
  /** The token ids that the windows were drawn from; absent when they are not of one text. */
  text?: Int32Array
}

/**
 * The windows of a calibration text, drawn as the paper's code draws them: from one text, or, of C4, each from a document
 * of its own that is longer than a window. A file of windows gives its first ones. Several sources give their shares, which lie
 * evenly among each other.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, INVALID_TEXT (too short), INVALID_CHECKPOINT (tokenizer), DOWNLOAD_FAILED,
 * WRITE_FAILED, OUT_OF_MEMORY, ABORTED.
 *
 * @internal
 */
export async function calibrationWindows(
  model: Vocabulary,
  source: Calibration,
  options: WindowOptions,
): Promise<CalibrationWindows> {
  const kind = checkedKind(source)
  if (source.windows) return { windows: givenWindows(model, source.windows) }
  if (source.sources) return { windows: await drawShares(model, source.sources, options) }
  if (kind === 'c4') return drawDocuments(model, source, options)
  const { ids, windowLength } = await readSource(model, source, 'calibration', options)
  if (windowLength !== undefined) return takeWindows(source.file ?? '', ids, windowLength, options)
  return { windows: drawWindows(ids, options), text: ids }
}

/**
 * All windows of a calibration text, one after the other; of C4, which has no end, as many as c4Windows. Throws as
 * calibrationWindows does.
 *
 * @internal
 */
export async function allWindows(
  model: Vocabulary,
  source: Calibration,
  options: Omit<WindowOptions, 'samples'>,
): Promise<Int32Array[]> {
  const kind = checkedKind(source)
  if (source.windows) return givenWindows(model, source.windows)
  if (source.sources) {
    const all: Int32Array[] = []
    for (const part of source.sources) all.push(...(await allWindows(model, part, options)))
    return all
  }
  if (kind === 'c4') return (await drawDocuments(model, source, { ...options, samples: c4Windows })).windows
  const { ids } = await readSource(model, source, 'calibration', options)
  return splitWindows(ids, options.sequenceLength)
}

/**
 * The token ids of an evaluation text, to be split into windows of `sequenceLength`: of C4, as many as the paper's code
 * keeps; else all, or enough for `windows` windows.
 *
 * Throws as calibrationWindows does.
 *
 * @internal
 */
export async function evaluationTokens(
  model: Vocabulary,
  source: Source,
  options: ReadOptions & { sequenceLength: number; windows?: number | undefined },
): Promise<Int32Array> {
  const isC4 = checkedKind(source, textKinds) === 'c4'
  const windows = Math.min(options.windows ?? Infinity, isC4 ? c4Windows : Infinity)
  const most = windows * options.sequenceLength
  const { ids } = await readSource(model, source, 'evaluation', { ...options, most })
  return isC4 ? ids.slice(0, most) : ids
}

const c4Windows = 256

/** Sequences that the caller has given. Throws INVALID_OPTION. */
const givenWindows = (model: Vocabulary, windows: readonly ArrayLike<number>[]): Int32Array[] =>
  windows.map((window) => {
    const ids = tokenIds(window, model.vocabularySize)
    if (ids.length > 0) return ids
    throw new SparseGptError('INVALID_OPTION', 'option windows: a window needs at least one token id')
  })

/** The windows of several sources, as many of each as its weight says. Throws INVALID_OPTION for fewer windows than sources. */
async function drawShares(
  model: Vocabulary,
  sources: NonNullable<Calibration['sources']>,
  options: WindowOptions,
): Promise<Int32Array[]> {
  const { samples } = options
  const total = sources.reduce((sum, { weight }) => sum + weight, 0)
  // Each window goes to the source that lacks most of its share so far, so that any run of windows has about the same mixture.
  const counts = sources.map(() => 0)
  const order = Array.from({ length: samples }, (_, i) => {
    const lacking = sources.map(({ weight }, s) => (weight / total) * (i + 1) - counts[s]!)
    const next = lacking.indexOf(Math.max(...lacking))
    counts[next]!++
    return next
  })
  const none = counts.indexOf(0)
  if (none >= 0) {
    const message = `option samples: ${samples} windows leave none for source ${none + 1} of ${sources.length}: give more samples, or a larger weight`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  const drawn: Int32Array[][] = []
  for (const [s, source] of sources.entries())
    drawn.push((await calibrationWindows(model, source, { ...options, samples: counts[s]! })).windows)
  return order.map((s) => drawn[s]!.shift()!)
}

/** The kinds of sources of text, and what else calibration takes. */
const textKinds = ['dataset', 'file', 'text', 'messages', 'tokens'] as const
const kinds = [...textKinds, 'sources', 'windows'] as const

/** What a source is; 'c4' is that data set, or a shard of it in a file. Throws INVALID_OPTION unless it is exactly one thing. */
function checkedKind(
  source: Calibration,
  among: readonly (typeof kinds)[number][] = kinds,
): (typeof kinds)[number] | 'c4' {
  const given = among.filter((name) => source[name] !== undefined)
  const [kind] = given
  if (kind === undefined || given.length > 1) {
    const message = `option ${given[1] ?? 'file'}: give exactly one of ${among.slice(0, -1).join(', ')} and ${among.at(-1)}`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (
    source.chat &&
    (kind !== 'file' || !['lines', 'json'].includes(documentFormat(source.file ?? '') ?? ''))
  ) {
    const message =
      'option chat: is of a .jsonl, .ndjson or .json file whose rows have messages: give such a file'
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (
    source.textField !== undefined &&
    (kind !== 'file' || documentFormat(source.file ?? '') === undefined)
  ) {
    const what = kind === 'file' ? `${source.file} has no rows` : `${kind} has no such choice`
    const message = `option textField: ${what}; a .jsonl, .json or .parquet file has`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  return source.dataset === 'c4' || (kind === 'file' && isC4Shard(source.file ?? '')) ? 'c4' : kind
}

async function readSource(
  model: Vocabulary,
  source: Source,
  use: 'calibration' | 'evaluation',
  { signal, memory, most }: ReadOptions & { most?: number | undefined },
): Promise<{ ids: Int32Array; windowLength?: number }> {
  if (source.tokens !== undefined) {
    return { ids: tokenIds(source.tokens, model.vocabularySize) }
  }
  const { dataset, onDownload, onEncode: onRead, text, messages } = source
  const options = { signal, memory, most }
  const shard = source.file !== undefined && isC4Shard(source.file) ? source.file : undefined
  if (dataset !== undefined || shard !== undefined) {
    const from = { file: shard, textField: source.textField }
    const parts = datasetParts(dataset ?? 'c4', use, { ...from, onDownload, signal, onRead })
    return { ids: await encode(model, parts, options) }
  }
  if (text !== undefined) {
    const parts = joinDocuments(typeof text === 'string' ? [text] : textsOf(text), '\n\n')
    return { ids: await encode(model, parts, options) }
  }
  if (messages !== undefined) return { ids: await encodeConversations(model, messages, options) }
  const file = source.file ?? ''
  if (source.chat) {
    const conversations = readConversations(file, onRead)
    return { ids: await encodeConversations(model, conversations, options) }
  }
  if (isTokenFile(file)) return readTokenFile(file, model.vocabularySize)
  const parts = textParts(file, { textField: source.textField, onRead })
  const ids = await encode(model, parts, options).catch((error: unknown) => {
    throw unknownDataset(file, error) ?? error
  })
  return { ids }
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
async function encode(
  model: Vocabulary,
  text: string | AsyncIterable<string>,
  options: ReadOptions & { most?: number | undefined },
): Promise<Int32Array> {
  const tokenizer = await model.tokenizer()
  const ids = await (typeof text === 'string'
    ? tokenizer.encode(text, options)
    : tokenizer.encodeParts(text, options))
  return checkedIds(model, ids)
}

function checkedIds(model: Vocabulary, ids: Int32Array): Int32Array {
  const largest = ids.reduce((a, b) => Math.max(a, b), 0)
  if (largest >= model.vocabularySize) {
    const message = `${model.folder}: the tokenizer gives id ${largest}, but the model's vocabulary has ${model.vocabularySize} entries`
    throw new SparseGptError('INVALID_CHECKPOINT', message)
  }
  return ids
}

/** The documents of an iterable. Throws INVALID_OPTION for one that is no text, INVALID_TEXT where the iterable throws. */
async function* textsOf(documents: Iterable<unknown> | AsyncIterable<unknown>): AsyncGenerator<string> {
  try {
    for await (const document of documents) {
      if (typeof document === 'string') yield document
      else throw new SparseGptError('INVALID_OPTION', `option text: must hold texts, not ${typeof document}`)
    }
  } catch (cause) {
    if (cause instanceof SparseGptError) throw cause
    throw new SparseGptError('INVALID_TEXT', `option text: giving the documents failed: ${reason(cause)}`, {
      cause,
    })
  }
}

/** The conversations of a file of rows. Throws INVALID_TEXT, FILE_NOT_FOUND. */
async function* readConversations(
  file: string,
  onRead?: (share: number) => void,
): AsyncGenerator<z.output<typeof conversation>> {
  try {
    for await (const { where, fields } of readRows(file, ['messages'], onRead)) {
      const { data } = conversation.safeParse(fields?.['messages'])
      if (!data) {
        const message = `${where} must be a JSON object with a list of { role, content } (a text, null or a list) in its field "messages"`
        throw new SparseGptError('INVALID_TEXT', message)
      }
      yield data
    }
  } catch (error) {
    throw textReadError(file, error)
  }
}

/** The token ids of conversations, one after the other, each as the chat template writes it out. */
async function encodeConversations(
  model: Vocabulary,
  conversations: AsyncIterable<readonly ChatMessage[]> | Iterable<readonly ChatMessage[]>,
  { signal, memory, most = Infinity }: ReadOptions & { most?: number | undefined },
): Promise<Int32Array> {
  const tokenizer = await model.tokenizer()
  const ids: number[] = []
  for await (const messages of conversations) {
    if (ids.length >= most) break
    for (const id of await tokenizer.encodeChat(messages, { signal, memory, complete: true })) ids.push(id)
  }
  return checkedIds(model, Int32Array.from(ids))
}

/** The windows of C4: documents are drawn until one is longer than a window, then a window of it. */
async function drawDocuments(
  model: Vocabulary,
  source: Source,
  options: WindowOptions,
): Promise<CalibrationWindows> {
  const { samples, sequenceLength, signal, memory } = options
  const random = new PythonRandom(options.seed)
  const { file, textField, onDownload } = source
  const store = await openC4({ file, textField, onDownload, signal })
  const tooShort = new Set<number>()
  const windows: Int32Array[] = []
  try {
    while (windows.length < samples) {
      abortable(signal)
      if (tooShort.size === store.count) {
        const message = `none of the ${store.count} documents of ${file ?? 'C4'} has more than ${sequenceLength} tokens: give a shorter sequence length`
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
