import { isUtf8 } from 'node:buffer'
import { createReadStream } from 'node:fs'
import { createGunzip } from 'node:zlib'
import { reason, systemCode } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'

const byteOrderMark = '\ufeff'

/** How the documents of a file are stored, by its name; undefined when the file is one text. */
export function documentFormat(path: string): 'lines' | 'parquet' | undefined {
  if (/\.(jsonl|jsonl\.gz|json\.gz)$/i.test(path)) return 'lines'
  return /\.parquet$/i.test(path) ? 'parquet' : undefined
}

/**
 * The documents of a file, in order: the field of every JSON object of a `.jsonl` (or `.jsonl.gz`, `.json.gz`) file, one
 * per line with blank lines skipped, or a column of text of a `.parquet` file.
 *
 * Throws INVALID_TEXT (with the line or row) when one has no such text, or the file is damaged; file system errors.
 */
export async function* readDocuments(path: string, field: string): AsyncGenerator<string> {
  if (documentFormat(path) === 'parquet') {
    yield* readParquet(path, field)
    return
  }
  let number = 0
  for await (const line of readLines(path)) {
    const text = parseLine(path, ++number, line, field)
    if (text !== undefined) yield text
  }
}

/** The text of a line of a `.jsonl` file; undefined when it is blank. Throws INVALID_TEXT. */
export function parseLine(path: string, number: number, line: Buffer, field: string): string | undefined {
  const decoded = decode(line, `${path}, line ${number}`)
  const json = number === 1 ? withoutMark(decoded) : decoded
  if (json.trim() === '') return undefined
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (error) {
    throw new SparseGptError('INVALID_TEXT', `${path}, line ${number} is not valid JSON`, { cause: error })
  }
  const text: unknown =
    typeof value === 'object' && value !== null && Object.hasOwn(value, field)
      ? (value as Record<string, unknown>)[field]
      : undefined
  if (typeof text !== 'string') {
    throw new SparseGptError(
      'INVALID_TEXT',
      `${path}, line ${number} must be a JSON object with the text in its field ${JSON.stringify(field)}`,
    )
  }
  return text
}

/**
 * The lines of a file as bytes, without their '\n'; of the unpacked file when its name ends in `.gz`. They come as a
 * stream, because a dataset's file can exceed what one read can hold. Throws INVALID_TEXT for a damaged gzip file; file
 * system errors.
 */
export async function* readLines(path: string): AsyncGenerator<Buffer> {
  let pending: Buffer[] = []
  for await (const chunk of readChunks(path)) {
    let start = 0
    for (let end = chunk.indexOf(0x0a); end >= 0; end = chunk.indexOf(0x0a, start)) {
      yield Buffer.concat([...pending, chunk.subarray(start, end)])
      pending = []
      start = end + 1
    }
    pending.push(chunk.subarray(start))
  }
  yield Buffer.concat(pending)
}

async function* readChunks(path: string): AsyncGenerator<Buffer> {
  const file = createReadStream(path, { highWaterMark: 1 << 20 })
  if (!/\.gz$/i.test(path)) {
    yield* file as AsyncIterable<Buffer>
    return
  }
  const unpacked = createGunzip({ chunkSize: 1 << 20 })
  file.on('error', (error) => unpacked.destroy(error)).pipe(unpacked)
  try {
    yield* unpacked as AsyncIterable<Buffer>
  } catch (error) {
    if (!systemCode(error)?.startsWith('Z_')) throw error
    const message = `${path} is not a valid gzip file (${reason(error)}): download it again`
    throw new SparseGptError('INVALID_TEXT', message, { cause: error })
  } finally {
    file.destroy()
  }
}

async function* readParquet(path: string, column: string): AsyncGenerator<string> {
  // Loading these takes as long as starting Node, and few jobs need them.
  const { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects, parquetSchema } =
    await import('hyparquet')
  const { compressors } = await import('hyparquet-compressors')
  const file = await asyncBufferFromFile(path)
  const damaged = (error: unknown) => {
    const message = `${path} is not a parquet file that can be read: ${reason(error)}`
    return new SparseGptError('INVALID_TEXT', message, { cause: error })
  }
  const metadata = await parquetMetadataAsync(file).catch((error: unknown) => {
    throw damaged(error)
  })
  const names = parquetSchema(metadata).children.map(({ element }) => element.name)
  if (!names.includes(column)) {
    const message = `${path} has no column ${JSON.stringify(column)} with the text; it has ${names.join(', ')}`
    throw new SparseGptError('INVALID_TEXT', message)
  }
  let rowStart = 0
  for (const group of metadata.row_groups) {
    const rowEnd = rowStart + Number(group.num_rows)
    const options = { file, metadata, columns: [column], rowStart, rowEnd, compressors }
    const rows = await parquetReadObjects(options).catch((error: unknown) => {
      throw damaged(error)
    })
    for (const [i, row] of rows.entries()) {
      const text: unknown = row[column]
      if (typeof text !== 'string') {
        const message = `${path}, row ${rowStart + i + 1} has no text in its column ${JSON.stringify(column)}`
        throw new SparseGptError('INVALID_TEXT', message)
      }
      yield text
    }
    rowStart = rowEnd
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
