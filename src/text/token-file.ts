import { randomBytes } from 'node:crypto'
import { access, constants, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, extname, resolve } from 'node:path'
import { readError, reason } from '../files/read-error.js'
import { readSafetensorsHeader, serializeHeader } from '../files/safetensors.js'
import { SparseGptError } from '../errors.js'
import { pathOf, type PathOrUrl } from '../options.js'

const tensorName = 'tokens'

/** Whether a file of this name holds token ids rather than text. */
export const isTokenFile = (file: string) => extname(file).toLowerCase() === '.safetensors'

/** The contents of a token file: those of a text, or windows of equal length that were already drawn from one. */
interface TokenFile {
  /** The token ids, those of all windows one after the other. */
  ids: Int32Array
  /** The number of tokens of each window; undefined when `ids` is a text to draw windows from. */
  windowLength?: number
}

/** Throws WRITE_FAILED where saveTokens could not write: before a text is read for it, which can take long. */
export async function requireWritable(path: string): Promise<void> {
  const file = resolve(path)
  await access(dirname(file), constants.W_OK).catch((cause: unknown) => {
    throw new SparseGptError('WRITE_FAILED', `cannot write ${file}: ${reason(cause)}`, { cause })
  })
}

/**
 * Saves token ids, so that a text need not be encoded again. The file is a safetensors file with one I32 tensor
 * `tokens`: [n] for a text, [windows, sequence] for windows (all of one length). It replaces a file of that name,
 * complete or not at all.
 *
 * @throws SparseGptError INVALID_OPTION for a name that does not end in .safetensors, or windows of different lengths;
 * WRITE_FAILED.
 */
export async function saveTokens(path: PathOrUrl, tokens: Int32Array | readonly Int32Array[]): Promise<void> {
  const file = pathOf(path, 'saveTokens')
  if (!isTokenFile(file)) {
    throw new SparseGptError('INVALID_OPTION', `option saveTokens: ${file} must end in .safetensors`)
  }
  const windows = tokens instanceof Int32Array ? [tokens] : tokens
  const length = windows[0]?.length ?? 0
  if (windows.some((window) => window.length !== length)) {
    throw new SparseGptError('INVALID_OPTION', 'option saveTokens: the windows must be of equal length')
  }
  const shape = tokens instanceof Int32Array ? [length] : [windows.length, length]
  const { header } = serializeHeader([{ name: tensorName, dtype: 'I32', shape }], {})
  const bytes = windows.map((window) => new Uint8Array(window.buffer, window.byteOffset, window.byteLength))
  const partial = `${resolve(file)}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`
  try {
    await writeFile(partial, Buffer.concat([header, ...bytes]), { flag: 'wx' })
    await rename(partial, file)
  } catch (error) {
    await rm(partial, { force: true }).catch(() => undefined)
    throw new SparseGptError('WRITE_FAILED', `cannot write ${resolve(file)}: ${reason(error)}`, {
      cause: error,
    })
  }
}

/**
 * Reads what saveTokens wrote; I64, as PyTorch makes it, is read too.
 *
 * @throws SparseGptError FILE_NOT_FOUND; INVALID_CHECKPOINT for a damaged file; INVALID_TEXT for one without such a
 * tensor, or with an id that is not in [0, vocabulary).
 */
export async function readTokenFile(file: string, vocabulary: number): Promise<TokenFile> {
  const path = resolve(file)
  const { tensors } = await readSafetensorsHeader(path)
  const tensor = tensors.find(({ name }) => name === tensorName)
  if (!tensor || !['I32', 'I64'].includes(tensor.dtype) || ![1, 2].includes(tensor.shape.length)) {
    const message = `${path} is no token file: it needs a tensor "${tensorName}", I32 [tokens] or [windows, sequence]`
    throw new SparseGptError('INVALID_TEXT', message)
  }
  const contents = await readFile(path).catch((error: unknown) => {
    throw readError(error, path, 'give an existing token file')
  })
  // A copy, for its alignment.
  const bytes = Uint8Array.from(contents.subarray(tensor.offset, tensor.offset + tensor.bytes)).buffer
  // Compared before they are narrowed to 32 bits, which would make valid ids of large ones.
  const stored = tensor.dtype === 'I32' ? new Int32Array(bytes) : new BigInt64Array(bytes)
  const wrong = stored.findIndex((id: number | bigint) => id < 0 || id >= vocabulary)
  if (wrong >= 0) {
    const message = `${path} has the token id ${stored[wrong] ?? 0} at position ${wrong}, but the model's vocabulary has ${vocabulary} entries: it was made with another tokenizer`
    throw new SparseGptError('INVALID_TEXT', message)
  }
  const ids = stored instanceof Int32Array ? stored : Int32Array.from(stored, Number)
  const [, windowLength] = tensor.shape
  return windowLength === undefined ? { ids } : { ids, windowLength }
}
