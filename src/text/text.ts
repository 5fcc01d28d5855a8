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
 * it is not UTF-8, a row has no such text, the file is damaged, or the text is longer than a string can be; OUT_OF_MEMORY when
 * it is longer than `maxLength`, the length that memory allows, in characters.
 */
export async function readText(
  file: string,
  { textField = 'text', maxLength }: { textField?: string | undefined; maxLength?: number | undefined } = {},
): Promise<string> {
  const path = resolve(file)
  try {
    if (documentFormat(path) === undefined) return decodeFile(path, await readWhole(path, maxLength))
    return await joinDocuments(path, readDocuments(path, textField), '\n\n', maxLength)
  } catch (error) {
    throw textReadError(path, error)
  }
}

async function readWhole(path: string, maxBytes = constants.MAX_STRING_LENGTH): Promise<Buffer> {
  const limit = { advice: textAdvice, maxBytes, tooLong: () => tooLong(path, maxBytes) }
  if (!/\.gz$/i.test(path)) return readRegularFile(path, limit)
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of readChunks(path)) {
    chunks.push(chunk)
    bytes += chunk.length
    if (bytes > maxBytes) throw tooLong(path, maxBytes)
  }
  return Buffer.concat(chunks)
}

/** The number of documents that become one string at a time: many small strings take many times their length. */
const documentsAtOnce = 4096

/** The documents in one string. Throws as readText does when it would be too long. */
export async function joinDocuments(
  path: string,
  documents: AsyncIterable<string>,
  separator: string,
  maxLength = constants.MAX_STRING_LENGTH,
): Promise<string> {
  const joined: string[] = []
  let parts: string[] = []
  let length = 0
  for await (const text of documents) {
    parts.push(text)
    length += text.length + separator.length
    if (length > maxLength) throw tooLong(path, maxLength)
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

function tooLong(path: string, maxLength = constants.MAX_STRING_LENGTH): SparseGptError {
  if (maxLength < constants.MAX_STRING_LENGTH) {
    const message = `${path} has more text than the ${maxLength} characters that can be read and encoded in the memory that is allowed: give a part of it, its token ids, or more memory`
    return new SparseGptError('OUT_OF_MEMORY', message)
  }
  return new SparseGptError(
    'INVALID_TEXT',
    `${path} has more text than a string can hold (${constants.MAX_STRING_LENGTH} characters): give a part of it`,
  )
}
