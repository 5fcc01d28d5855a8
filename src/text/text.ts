import { constants, isUtf8 } from 'node:buffer'
import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { SparseGptError } from '../errors.js'
import { decode, documentFormat, readDocuments, withoutMark } from './documents.js'

/**
 * The text of a file as one string, to be encoded as a whole. Of a `.jsonl`, `.jsonl.gz`, `.json.gz` or `.parquet` file
 * the field or column `textField` (default `text`) of every row is a document; documents are joined with an empty line.
 * Any other file is taken whole, as UTF-8 without a leading byte order mark and with "\n" for "\r\n" and "\r".
 *
 * @throws SparseGptError FILE_NOT_FOUND when the file is missing or unreadable; INVALID_TEXT (with the line number) when
 * it is not UTF-8, a row has no such text, the file is damaged, or the text is longer than a string can be.
 */
export async function readText(file: string, options: { textField?: string } = {}): Promise<string> {
  const path = resolve(file)
  try {
    if (documentFormat(path) === undefined) return decodeFile(path, await readFile(path))
    return await joinDocuments(path, readDocuments(path, options.textField ?? 'text'), '\n\n')
  } catch (error) {
    throw textReadError(path, error)
  }
}

/** The documents in one string. Throws INVALID_TEXT when it would be longer than a string can be. */
export async function joinDocuments(
  path: string,
  documents: AsyncIterable<string>,
  separator: string,
): Promise<string> {
  const parts: string[] = []
  let length = 0
  for await (const text of documents) {
    parts.push(text)
    length += text.length + separator.length
    if (length > constants.MAX_STRING_LENGTH) throw tooLong(path)
  }
  return parts.join(separator)
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
  const { code, message } = error as NodeJS.ErrnoException
  if (code === 'ERR_STRING_TOO_LONG' || code === 'ERR_FS_FILE_TOO_LARGE') return tooLong(path)
  const what = code === 'ENOENT' || code === 'ENOTDIR' ? 'does not exist' : `cannot be read (${message})`
  return new SparseGptError(
    'FILE_NOT_FOUND',
    `${path} ${what}: give an existing text, .jsonl or .parquet file`,
    {
      cause: error,
    },
  )
}

function tooLong(path: string): SparseGptError {
  return new SparseGptError(
    'INVALID_TEXT',
    `${path} has more text than a string can hold (${constants.MAX_STRING_LENGTH} characters): give a part of it`,
  )
}
