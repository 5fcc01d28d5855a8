import { constants, isUtf8 } from 'node:buffer'
import { createReadStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { extname, resolve } from 'node:path'
import { SparseGptError } from '../errors.js'

const byteOrderMark = '\ufeff'
const documentSeparator = '\n\n'

/**
 * The text of a file as one string, to be encoded as a whole. A `.jsonl` file has one JSON object per line, whose field
 * `textField` (default `text`) is a document; documents are joined with an empty line. Any other file is taken whole, as
 * UTF-8 without a leading byte order mark and with "\n" for "\r\n" and "\r".
 *
 * @throws SparseGptError FILE_NOT_FOUND when the file is missing or unreadable; INVALID_TEXT (with the line number) when
 * it is not UTF-8, a line is no object with that field, or the text is longer than a string can be.
 */
export async function readText(file: string, options: { textField?: string } = {}): Promise<string> {
  const path = resolve(file)
  try {
    if (extname(path).toLowerCase() === '.jsonl')
      return await readDocuments(path, options.textField ?? 'text')
    return decodeFile(path, await readFile(path))
  } catch (error) {
    throw textReadError(path, error)
  }
}

async function readDocuments(path: string, field: string): Promise<string> {
  const documents: string[] = []
  let length = 0
  let number = 0
  for await (const line of readLines(path)) {
    number++
    const text = parseLine(path, number, decode(line, `${path}, line ${number}`), field)
    if (text === undefined) continue
    documents.push(text)
    length += text.length + documentSeparator.length
    if (length > constants.MAX_STRING_LENGTH) throw tooLong(path)
  }
  return documents.join(documentSeparator)
}

function parseLine(path: string, number: number, line: string, field: string): string | undefined {
  const json = number === 1 ? withoutMark(line) : line
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

/** Lines as bytes, without their '\n'. A stream, because a dataset's file can exceed what one read can hold. */
async function* readLines(path: string): AsyncGenerator<Buffer> {
  let pending: Buffer[] = []
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) {
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

function decode(bytes: Buffer, where: string): string {
  if (!isUtf8(bytes)) {
    throw new SparseGptError('INVALID_TEXT', `${where} is not valid UTF-8: convert the file to UTF-8`)
  }
  return bytes.toString('utf8')
}

/** As Python's text mode reads a file, and so the paper's code. */
const withPlainNewlines = (text: string) => text.replace(/\r\n?/g, '\n')

const withoutMark = (text: string) => (text.startsWith(byteOrderMark) ? text.slice(1) : text)

function textReadError(path: string, error: unknown): SparseGptError {
  if (error instanceof SparseGptError) return error
  const { code, message } = error as NodeJS.ErrnoException
  if (code === 'ERR_STRING_TOO_LONG' || code === 'ERR_FS_FILE_TOO_LARGE') return tooLong(path)
  const what = code === 'ENOENT' || code === 'ENOTDIR' ? 'does not exist' : `cannot be read (${message})`
  return new SparseGptError('FILE_NOT_FOUND', `${path} ${what}: give an existing text or .jsonl file`, {
    cause: error,
  })
}

function tooLong(path: string): SparseGptError {
  return new SparseGptError(
    'INVALID_TEXT',
    `${path} has more text than a string can hold (${constants.MAX_STRING_LENGTH} characters): give a part of it`,
  )
}
