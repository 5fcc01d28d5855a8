import { constants, isUtf8 } from 'node:buffer'
import { resolve } from 'node:path'
import { SparseGptError } from '../errors.js'
import { readRegularFile } from '../files/regular-file.js'
import { readError, systemCode } from '../files/read-error.js'
import { decode, documentFormat, readChunks, readDocuments, textAdvice, withoutMark } from './documents.js'

/**
 * The text of a file as one string, to be encoded as a whole. Of a file of rows (see readDocuments) the field or column
 * `textField` (default `text`) of every row is a document; documents are joined with an empty line. Any other file is taken
 * whole, as UTF-8 without a leading byte order mark and with "\n" for "\r\n" and "\r"; unpacked, when its name ends in `.gz`.
 *
 * @throws SparseGptError FILE_NOT_FOUND when the file is missing or unreadable; INVALID_TEXT (with the line number) when
 * it is not UTF-8, a row has no such text, the file is damaged, or the text is longer than a string can be.
 */
export async function readText(
  file: string,
  options: { textField?: string | undefined } = {},
): Promise<string> {
  const path = resolve(file)
  try {
    if (documentFormat(path) === undefined) return decodeFile(path, await readWhole(path))
    return await joinDocuments(path, readDocuments(path, options.textField ?? 'text'), '\n\n')
  } catch (error) {
    throw textReadError(path, error)
  }
}

async function readWhole(path: string): Promise<Buffer> {
  const limit = { advice: textAdvice, maxBytes: constants.MAX_STRING_LENGTH, tooLong: () => tooLong(path) }
  if (!/\.gz$/i.test(path)) return readRegularFile(path, limit)
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of readChunks(path)) {
    chunks.push(chunk)
    bytes += chunk.length
    if (bytes > constants.MAX_STRING_LENGTH) throw tooLong(path)
  }
  return Buffer.concat(chunks)
}

/** The number of documents that become one string at a time: many small strings take many times their length. */
const documentsAtOnce = 4096

/** The documents in one string. Throws INVALID_TEXT when it would be longer than a string can be. */
export async function joinDocuments(
  path: string,
  documents: AsyncIterable<string>,
  separator: string,
): Promise<string> {
  const joined: string[] = []
  let parts: string[] = []
  let length = 0
  for await (const text of documents) {
    parts.push(text)
    length += text.length + separator.length
    if (length > constants.MAX_STRING_LENGTH) throw tooLong(path)
    if (parts.length < documentsAtOnce) continue
    joined.push(parts.join(separator))
    parts = []
  }
  if (parts.length > 0) joined.push(parts.join(separator))
  return joined.join(separator)
}

function decodeFile(path: string, bytes: Buffer): string {
  if (isUtf8(bytes)) return withPlainNewlines(withoutMark(decode(bytes, path)))
  let number = 1
  for (let start = 0; ; number++) {
    const end = bytes.indexOf(0x0a, start)
    const line = bytes.subarray(start, end < 0 ? undefined : end)
    if (end < 0 || !isUtf8(line)) return decode(line, `${path}, line ${number}`)
    start = end + 1
  }
}

/** The text as Python's text mode reads it, and so the paper's code. */
const withPlainNewlines = (text: string) => text.replace(/\r\n?/g, '\n')

/**
 * The error for a failed read of a text file: FILE_NOT_FOUND, or INVALID_TEXT; one of this package is passed on as it
 * is.
 */
export function textReadError(path: string, error: unknown): SparseGptError {
  if (error instanceof SparseGptError) return error
  const code = systemCode(error)
  if (code === 'ERR_STRING_TOO_LONG' || code === 'ERR_FS_FILE_TOO_LARGE') return tooLong(path)
  return readError(error, path, textAdvice)
}

function tooLong(path: string): SparseGptError {
  return new SparseGptError(
    'INVALID_TEXT',
    `${path} has more text than a string can hold (${constants.MAX_STRING_LENGTH} characters): give a part of it`,
  )
}
