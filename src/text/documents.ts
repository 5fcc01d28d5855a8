import { isUtf8 } from 'node:buffer'
import { pipeline } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { reason, systemCode } from '../files/read-error.js'
import { openRegularFile } from '../files/regular-file.js'
import { SparseGptError } from '../errors.js'
import { checkGroup } from './parquet-pages.js'
import { SandboxFault, SandboxProcess } from './sandbox-process.js'

const byteOrderMark = '\ufeff'

/** How a text file is to be read, for messages about one that cannot be. */
export const textAdvice = 'give an existing text, .jsonl, .json or .parquet file'

/** The largest row, or line, that a file may have, in bytes. */
const maxRowBytes = 2 ** 26
/** Text packs to a tenth; only what was made to fill memory or time packs to less than a hundredth. */
const maxGzipRatio = 100
const gzipAllowance = 2 ** 24

/** How the documents of a file are stored, by its name; undefined when the file is one text. */
export function documentFormat(path: string): 'lines' | 'json' | 'parquet' | undefined {
  if (/\.(jsonl|ndjson)(\.gz)?$/i.test(path)) return 'lines'
  if (/\.json(\.gz)?$/i.test(path)) return 'json'
  return /\.parquet$/i.test(path) ? 'parquet' : undefined
}

/** A row of a file. */
export interface Row {
  /** The file and the row's number, or its line's, for messages. */
  where: string
  /** The fields of the row, which is undefined where it is no JSON object. */
  fields: Record<string, unknown> | undefined
}

/**
 * The documents of a file, in order: the field of every row, see readRows.
 *
 * Throws INVALID_TEXT (with the line or row) when one has no such text, or the file is damaged; FILE_NOT_FOUND.
 */
export async function* readDocuments(
  path: string,
  field: string,
  onRead?: (share: number) => void,
): AsyncGenerator<string> {
  for await (const row of readRows(path, [field], onRead)) yield textOf(row, field)
}

/**
 * The rows of a file, in order: the JSON objects of a `.jsonl` or `.ndjson` file, one per line with blank lines skipped; of a
 * `.json` file, which has such lines or one list of objects; all of these may be packed (`.gz`); or those of a `.parquet` file,
 * of which `columns` are read. `onRead` is told the share of the file that has been read, in (0, 1].
 *
 * Throws INVALID_TEXT (with the line or row) when the file is damaged, or lacks a column; FILE_NOT_FOUND.
 */
export async function* readRows(
  path: string,
  columns: readonly string[],
  onRead?: (share: number) => void,
): AsyncGenerator<Row> {
  const format = documentFormat(path)
  if (format === 'parquet') {
    yield* readParquet(path, columns, onRead)
    return
  }
  if (format === 'json' && (await beginsList(path))) {
    for await (const { number, bytes } of readListed(path, onRead)) {
      const where = `${path}, row ${number}`
      yield rowOf(decode(bytes, where), where)
    }
    return
  }
  for await (const { number, bytes } of readLines(path, onRead)) {
    const row = lineOf(path, number, bytes)
    if (row !== undefined) yield row
  }
}

/** The text of a line of a `.jsonl` file; undefined when it is blank. Throws INVALID_TEXT. */
export function parseLine(path: string, number: number, line: Buffer, field: string): string | undefined {
  const row = lineOf(path, number, line)
  return row && textOf(row, field)
}

function lineOf(path: string, number: number, line: Buffer): Row | undefined {
  const where = `${path}, line ${number}`
  const decoded = decode(line, where)
  const json = number === 1 ? withoutMark(decoded) : decoded
  return json.trim() === '' ? undefined : rowOf(json, where)
}

/** Throws INVALID_TEXT, which says `where`. */
function rowOf(json: string, where: string): Row {
  try {
    const value: unknown = JSON.parse(json)
    const isObject = typeof value === 'object' && value !== null
    return { where, fields: isObject ? (value as Record<string, unknown>) : undefined }
  } catch (error) {
    const advice = /\.json(\.gz)?,/i.test(where)
      ? ': a .json file must hold one list of rows, or one row in each line'
      : ''
    throw new SparseGptError('INVALID_TEXT', `${where} is not valid JSON${advice}`, { cause: error })
  }
}

/** The text of a row. Throws INVALID_TEXT. */
function textOf({ where, fields }: Row, field: string): string {
  const text = fields && Object.hasOwn(fields, field) ? fields[field] : undefined
  if (typeof text === 'string') return text
  const name = JSON.stringify(field)
  const lacks = /\.parquet, row \d+$/i.test(where)
    ? `has no text in its column ${name}`
    : `must be a JSON object with the text in its field ${name}`
  const message = `${where} ${lacks}`
  throw new SparseGptError('INVALID_TEXT', message)
}

/**
 * The lines of a file that are not empty, as bytes without their '\n', and their numbers from 1; of the unpacked file when its
 * name ends in `.gz`. They come as a stream, because a dataset's file can exceed what one read can hold.
 *
 * Throws INVALID_TEXT for a damaged gzip file, or a line that is too long; FILE_NOT_FOUND.
 */
export async function* readLines(
  path: string,
  onRead?: (share: number) => void,
): AsyncGenerator<{ number: number; bytes: Buffer }> {
  const line = new RowBytes(path, 'line')
  for await (const chunk of readChunks(path, onRead)) {
    let start = 0
    for (let end = chunk.indexOf(0x0a); end >= 0; end = chunk.indexOf(0x0a, start)) {
      line.add(chunk.subarray(start, end))
      const taken = line.take()
      if (taken.bytes.length > 0) yield taken
      start = end + 1
    }
    line.add(chunk.subarray(start))
  }
  const last = line.take()
  if (last.bytes.length > 0) yield last
}

/** A row that arrives in parts. */
class RowBytes {
  private parts: Buffer[] = []
  private bytes = 0
  private taken = 0

  constructor(
    private readonly path: string,
    private readonly noun: 'line' | 'row',
  ) {}

  /** Adds a part. Throws INVALID_TEXT when there is too much. */
  add(part: Buffer): void {
    if (part.length === 0) return
    this.parts.push(part)
    this.bytes += part.length
    if (this.bytes <= maxRowBytes) return
    const message = `${this.path}, ${this.noun} ${this.taken + 1} has more than ${maxRowBytes} bytes: give a file of rows`
    throw new SparseGptError('INVALID_TEXT', message)
  }

  /** The row, complete, and its number from 1; what is added next is of another. */
  take(): { number: number; bytes: Buffer } {
    const bytes = this.parts.length === 1 ? this.parts[0]! : Buffer.concat(this.parts)
    this.parts = []
    this.bytes = 0
    return { number: ++this.taken, bytes }
  }
}

/** Which bytes are of blanks, or of the mark that a file may begin with. */
const blank = new Uint8Array(256)
for (const byte of Buffer.from(' \t\r\n\ufeff')) blank[byte] = 1

/** Whether the first character that is not blank is a '['. */
async function beginsList(path: string): Promise<boolean> {
  for await (const chunk of readChunks(path)) {
    const first = chunk.find((byte) => blank[byte] === 0)
    if (first !== undefined) return first === 0x5b
  }
  return false
}

/** The rows of a file that holds one JSON list, as bytes. Throws as readLines does. */
async function* readListed(
  path: string,
  onRead?: (share: number) => void,
): AsyncGenerator<{ number: number; bytes: Buffer }> {
  const row = new RowBytes(path, 'row')
  let depth = 0
  let inString = false
  let escaped = false
  let pending = false
  let ended = false
  const damaged = (what: string) => new SparseGptError('INVALID_TEXT', `${path} is not valid JSON: ${what}`)
  for await (const chunk of readChunks(path, onRead)) {
    let start = 0
    for (let i = 0; i < chunk.length; i++) {
      const byte = chunk[i]!
      if (inString) {
        if (escaped) escaped = false
        else if (byte === 0x5c) escaped = true
        else if (byte === 0x22) inString = false
        continue
      }
      const ends = depth === 1 && (byte === 0x2c || byte === 0x5d)
      if (ends) {
        row.add(chunk.subarray(start, i))
        // An empty list has no row.
        if (pending || byte === 0x2c) yield row.take()
        pending = false
        ended = byte === 0x5d
        start = i + 1
      } else if (depth === 0 && (ended || byte !== 0x5b) && blank[byte] === 0)
        throw damaged('something follows the list')
      else if (blank[byte] === 0 && depth > 0) pending = true
      if (byte === 0x22) inString = true
      else if (byte === 0x5b || byte === 0x7b) {
        if (depth++ === 0) start = i + 1
      } else if (byte === 0x5d || byte === 0x7d) depth--
    }
    if (depth > 0) row.add(chunk.subarray(start))
  }
  if (depth > 0) throw damaged('the list does not end')
}

/**
 * The bytes of a file, unpacked when its name ends in `.gz`; `onRead` is told the share of the file that has been read, in (0, 1].
 * Throws FILE_NOT_FOUND, INVALID_TEXT.
 */
export async function* readChunks(path: string, onRead?: (share: number) => void): AsyncGenerator<Buffer> {
  const { handle, bytes } = await openRegularFile(path, textAdvice)
  const file = handle.createReadStream({ highWaterMark: 1 << 20 })
  if (!/\.gz$/i.test(path)) {
    for await (const chunk of file as AsyncIterable<Buffer>) {
      onRead?.(Math.min(1, file.bytesRead / bytes))
      yield chunk
    }
    return
  }
  const unpacked = createGunzip({ chunkSize: 1 << 20 })
  pipeline(file, unpacked, () => undefined)
  let total = 0
  try {
    for await (const chunk of unpacked as AsyncIterable<Buffer>) {
      total += chunk.length
      if (total > gzipAllowance + maxGzipRatio * bytes) {
        const message = `${path} unpacks to more than ${maxGzipRatio} times its size: it is no packed text`
        throw new SparseGptError('INVALID_TEXT', message)
      }
      onRead?.(Math.min(1, file.bytesRead / bytes))
      yield chunk
    }
  } catch (error) {
    if (!systemCode(error)?.startsWith('Z_')) throw error
    const message = `${path} is not a valid gzip file (${reason(error)}): download it again`
    throw new SparseGptError('INVALID_TEXT', message, { cause: error })
  } finally {
    file.destroy()
  }
}

async function* readParquet(
  path: string,
  columns: readonly string[],
  onRead?: (share: number) => void,
): AsyncGenerator<Row> {
  // Loading these takes as long as starting Node, and few jobs need them.
  const { asyncBufferFromFile, parquetMetadataAsync, parquetSchema } = await import('hyparquet')
  const { handle } = await openRegularFile(path, textAdvice)
  await handle.close()
  const file = await asyncBufferFromFile(path)
  const damaged = (error: unknown) => {
    // The reader's own words, unless it has stumbled over what it had not expected.
    const { name } = error instanceof SandboxFault ? error.answer : (error as Error)
    const expected = name !== 'TypeError' && name !== 'RangeError'
    const why = expected ? reason(error) : 'it is damaged'
    const message = `${path} is not a parquet file that can be read: ${why}`
    return new SparseGptError('INVALID_TEXT', message, { cause: error })
  }
  const metadata = await parquetMetadataAsync(file).catch((error: unknown) => {
    throw damaged(error)
  })
  const names = parquetSchema(metadata).children.map(({ element }) => element.name)
  const missing = columns.find((column) => !names.includes(column))
  if (missing !== undefined) {
    const message = `${path} has no column ${JSON.stringify(missing)}; it has ${names.join(', ')}`
    throw new SparseGptError('INVALID_TEXT', message)
  }
  const sandbox = new SandboxProcess()
  try {
    let rowStart = 0
    for (const group of metadata.row_groups) {
      const rowEnd = rowStart + Number(group.num_rows)
      const read = async () => {
        let bytes = 0
        for (const column of columns) bytes += await checkGroup(file, group, column)
        return sandbox.rows({ file: path, columns: [...columns], rowStart, rowEnd, bytes })
      }
      const rows = await read().catch((error: unknown) => {
        throw error instanceof SparseGptError ? error : damaged(error)
      })
      for (const [i, fields] of rows.entries()) yield { where: `${path}, row ${rowStart + i + 1}`, fields }
      rowStart = rowEnd
      onRead?.(rowEnd / Math.max(1, Number(metadata.num_rows)))
    }
  } finally {
    sandbox.close()
  }
}

/** The text of UTF-8 bytes. Throws INVALID_TEXT, which says `where`, for any others. */
export function decode(bytes: Buffer, where: string): string {
  if (!isUtf8(bytes)) {
    throw new SparseGptError('INVALID_TEXT', `${where} is not valid UTF-8: convert the file to UTF-8`)
  }
  return bytes.toString('utf8')
}

/** The text without the byte order mark that it may begin with. */
export const withoutMark = (text: string) => (text.startsWith(byteOrderMark) ? text.slice(1) : text)
