import { isUtf8 } from 'node:buffer'
import { resolve } from 'node:path'
import { SparseGptError } from '../errors.js'
import { readError } from '../files/read-error.js'
import { decode, documentFormat, readChunks, readDocuments, textAdvice, withoutMark } from './documents.js'

/** How a file is read. */
export interface TextOptions {
  /** The field, or column, of a row that holds the text. Default: 'text'. */
  textField?: string | undefined
  /** A function that is told the share of the file that has been read, in (0, 1]. */
  onRead?: ((share: number) => void) | undefined
}

/**
 * The text of a file, in parts one after another. Of a file of rows (see readDocuments) the field or column `textField` of every
 * row is a document; documents are joined with an empty line. Any other file is taken whole, as UTF-8 without a leading byte order
 * mark and with "\n" for "\r\n" and "\r"; unpacked, when its name ends in `.gz`.
 *
 * @throws SparseGptError FILE_NOT_FOUND when the file is missing or unreadable; INVALID_TEXT (with the line number) when
 * it is not UTF-8, a row has no such text, or the file is damaged.
 */
export async function* textParts(
  file: string,
  { textField = 'text', onRead }: TextOptions = {},
): AsyncGenerator<string> {
  const path = resolve(file)
  try {
    if (documentFormat(path) === undefined) yield* plainText(path, onRead)
    else yield* joinDocuments(readDocuments(path, textField, onRead), '\n\n')
  } catch (error) {
    throw textReadError(path, error)
  }
}

/** The documents, with the separator between two of them. */
export async function* joinDocuments(
  documents: AsyncIterable<string> | Iterable<string>,
  separator: string,
): AsyncGenerator<string> {
  let between = ''
  for await (const text of documents) {
    yield between + text
    between = separator
  }
}

/** The text of a file that has no rows, as Python's text mode reads it, and so the paper's code. */
async function* plainText(path: string, onRead?: (share: number) => void): AsyncGenerator<string> {
  let rest: Buffer = Buffer.alloc(0)
  let lines = 1
  let atStart = true
  let endsInReturn = false as boolean
  const textOf = (bytes: Buffer) => {
    const decoded = decodeLines(path, bytes, lines)
    for (const byte of bytes) if (byte === 0x0a) lines++
    const text = atStart ? withoutMark(decoded) : decoded
    if (bytes.length > 0) atStart = false
    // A "\r" at the end may be half of a "\r\n".
    const whole = (endsInReturn ? '\r' : '') + text
    endsInReturn = whole.endsWith('\r')
    return (endsInReturn ? whole.slice(0, -1) : whole).replace(/\r\n?/g, '\n')
  }
  for await (const chunk of readChunks(path, onRead)) {
    const bytes = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk
    const end = endOfCharacters(bytes)
    rest = bytes.subarray(end)
    yield textOf(bytes.subarray(0, end))
  }
  const last = textOf(rest)
  yield endsInReturn ? `${last}\n` : last
}

/** Where the last character begins, if it may go on behind the bytes; else their end. */
function endOfCharacters(bytes: Buffer): number {
  for (let at = bytes.length - 1; at >= Math.max(0, bytes.length - 4); at--) {
    const byte = bytes[at]!
    if (byte >= 0xc0) return at
    if (byte < 0x80) return bytes.length
  }
  return bytes.length
}

/** The text of some bytes, of which the first is in the line `line`. Throws INVALID_TEXT with the line of what is not UTF-8. */
function decodeLines(path: string, bytes: Buffer, line: number): string {
  if (isUtf8(bytes)) return bytes.toString('utf8')
  for (let start = 0, number = line; ; number++) {
    const end = bytes.indexOf(0x0a, start)
    const own = bytes.subarray(start, end < 0 ? undefined : end)
    if (end < 0 || !isUtf8(own)) return decode(own, `${path}, line ${number}`)
    start = end + 1
  }
}

/**
 * The error for a failed read of a text file: FILE_NOT_FOUND, or INVALID_TEXT; one of this package is passed on as it
 * is.
 */
export const textReadError = (path: string, error: unknown): SparseGptError =>
  error instanceof SparseGptError ? error : readError(error, path, textAdvice)
