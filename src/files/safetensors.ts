import { isUtf8 } from 'node:buffer'
import { resolve } from 'node:path'
import { parse } from 'lossless-json'
import { SparseGptError } from '../errors.js'
import { quoted } from '../quoted.js'
import { foreignContents } from './foreign-contents.js'
import { structureOf } from './json-keys.js'
import { readError, reason } from './read-error.js'
import { openRegularFile } from './regular-file.js'

/** The bytes per element of every dtype that a safetensors file may have; some elements are parts of bytes. */
export const storedBytes = {
  C64: 8,
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
  U16: 2,
  U32: 4,
  U64: 8,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  F8_E4M3FNUZ: 1,
  F8_E5M2FNUZ: 1,
  F6_E2M3: 0.75,
  F6_E3M2: 0.75,
  F4: 0.5,
} as const

/** The dtype of a tensor in a file, as safetensors names it. */
export type StoredDType = keyof typeof storedBytes

/** Which part of a tensor of the file a tensor is, along the first dimension. */
export interface FusedPart {
  /** The name of the tensor in the file. */
  name: string
  /** Its shape. */
  shape: number[]
  /** The number of the part, from 0. */
  index: number
}

/** What a file's header says of a tensor besides its place. */
export interface TensorLayout {
  /** The name of the tensor, such as 'model.layers.0.mlp.up_proj.weight'. */
  name: string
  /** The dtype of its elements. */
  dtype: StoredDType
  /** The sizes of its dimensions, the last of which is contiguous; `[]` is a scalar. */
  shape: number[]
  /** Of which tensor of the file it is a part, if it is one. */
  fused?: FusedPart
}

/** The size in a file of a tensor of this dtype and shape, in bytes. */
export const tensorBytes = ({ dtype, shape }: Pick<TensorLayout, 'dtype' | 'shape'>) =>
  shape.reduce((product, size) => product * size, storedBytes[dtype])

/** A tensor as it lies in a file, little-endian. */
export interface StoredTensor extends TensorLayout {
  /** The absolute path of the file. */
  file: string
  /** The place of its first element, in bytes from the start of the file; the formats do not promise any alignment. */
  offset: number
  /** The size of its elements, in bytes: tensorBytes() of it. */
  bytes: number
  /**
   * The distances between neighbours in each dimension, in elements; only when the tensor does not lie row-major and
   * without gaps, as a transposed one in a .bin file.
   */
  strides?: number[]
  /** The tensors that the file has in the place of a packed one, which itself lies nowhere: its offset means nothing. */
  packed?: PackedParts
  /** The same of a matrix whose elements are integer codes on grids. */
  codes?: CodedMatrix
  /** The same of a matrix of narrow floats whose blocks have a scale each. */
  scaled?: ScaledMatrix
}

/** What is stored of a packed matrix P.weight [rows, columns]. */
export interface PackedParts {
  /** P.shape, I64 [2]: rows and columns. */
  shape: StoredTensor
  /** P.compressed, of the matrix's dtype, [values]: the values row by row. */
  compressed: StoredTensor
  /** P.bitmask, U8 [rows, columns / 8 rounded up]: the lowest bit first, 1 where there is a value. */
  bitmask: StoredTensor
  /** P.row_offsets, I64 [rows]: where each row begins in P.compressed. */
  rowOffsets: StoredTensor
}

/** What is stored of a matrix P.weight whose elements are scale · (code - zero point), rounded to the dtype of the scales. */
export interface CodedMatrix {
  /** The number of bits of a code, 2 … 8. */
  bits: number
  /** The number of columns of the codes [rows, columns] that share a scale and a zero point. */
  groupSize: number
  /** Whether the matrix is the transpose of what the codes stand for. */
  transposed: boolean
  parts: {
    /** P.code_shape, I64 [4]: rows and columns of the codes, bits, group size; [5] with a 1 if transposed; or P.weight_shape, I64 [2]. */
    shape: StoredTensor
    /**
     * P.codes, U8 [bytes], or P.weight_packed, I32 [rows, words]: each row a stream of bits, the lowest of each code first, that ends with
     * a whole byte or word.
     */
    codes: StoredTensor
    /** P.scale or P.weight_scale, of the matrix's dtype, [rows, groups]. */
    scale: StoredTensor
    /**
     * P.zero_point, U8 [rows, groups], or P.weight_zero_point, I32 [words, groups], packed down the columns. Absent: all are
     * 2^(bits - 1).
     */
    zeroPoint?: StoredTensor
    /** P.bitmask, U8 [rows, columns / 8 rounded up]: the lowest bit first, 0 where the code is the zero point. Absent: all codes are stored. */
    bitmask?: StoredTensor
    /** P.row_offsets, I64 [rows]: the byte of P.codes at which a row begins; there if bitmask is. */
    rowOffsets?: StoredTensor
  }
}

/** What is stored of a matrix of narrow floats whose blocks have a scale each: see BlockScaling. */
export type ScaledMatrix = { values: StoredTensor; scales: StoredTensor } & (
  { form: 'fp8'; block: [rows: number, columns: number] } | { form: 'mxfp4' }
)

/** Whether a tensor stands for others, which lie in the file in its place. */
export const isPacked = ({ packed, codes, scaled }: StoredTensor): boolean =>
  packed !== undefined || codes !== undefined || scaled !== undefined

/** The tensors that lie in the file of one of a checkpoint: its parts if it is packed, else itself. */
export const storedParts = (tensor: StoredTensor): StoredTensor[] => {
  if (tensor.scaled) return [tensor.scaled.values, tensor.scaled.scales]
  const parts = tensor.packed ?? tensor.codes?.parts
  return parts ? Object.values(parts as unknown as Record<string, StoredTensor>) : [tensor]
}

const lengthBytes = 8
const maxHeaderBytes = 100_000_000
// Far beyond any model, and read within seconds.
const maxDepth = 32
const maxKeys = 2 ** 19
/** The longest header, in characters, whose numbers are looked at one by one. */
const maxOddHeader = 2 ** 22

/**
 * Reads the header of a safetensors file and checks all that the format prescribes, so that every tensor returned lies
 * inside the file and none overlap. Tensors come ordered by offset, or as the header lists them.
 *
 * @throws SparseGptError FILE_NOT_FOUND, or INVALID_CHECKPOINT for a damaged file.
 */
export async function readSafetensorsHeader(
  file: string,
  order: 'offset' | 'listed' = 'offset',
): Promise<{ tensors: StoredTensor[]; metadata: Record<string, string> }> {
  const path = resolve(file)
  const { json, fileBytes } = await readHeaderText(path)
  const entries = parseHeader(path, json)
  const metadata = readMetadata(path, entries['__metadata__'])
  const dataStart = lengthBytes + Buffer.byteLength(json)
  const listed = Object.entries(entries)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, entry]) => readEntry(path, name, entry, dataStart))
  // An empty tensor begins where its successor does.
  const tensors = [...listed].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)
  checkLayout(path, tensors, dataStart, fileBytes)
  return { tensors: order === 'listed' ? listed : tensors, metadata }
}

/**
 * The first bytes of a safetensors file that holds `tensors` one after the other in the given order: 8 length bytes and
 * the JSON, padded with spaces to a multiple of 8, or to `headerBytes` in all if that is more. `offsets` are absolute
 * (bytes from the start of the file). `listed`: the names in the order in which the header lists them; default: as they lie. Parts of
 * a fused tensor, which are all there and lie one after the other, are listed as that.
 *
 * @throws SparseGptError INTERNAL when a name occurs twice.
 */
export function serializeHeader(
  tensors: readonly TensorLayout[],
  metadata: Record<string, string>,
  headerBytes = 0,
  listed?: readonly string[],
): { header: Uint8Array; offsets: Map<string, number>; fileBytes: number } {
  // Joined by hand: as properties of an object, names such as "__proto__" or "7" would vanish or change places.
  const entries = new Map<string, string>()
  const begins = new Map<string, number>()
  let end = 0
  for (const { name, dtype, shape, fused } of tensors) {
    if (begins.has(name) || name === '__metadata__') {
      throw new SparseGptError('INTERNAL', `cannot write two tensors of the name ${JSON.stringify(name)}`)
    }
    const begin = end
    begins.set(name, begin)
    end += tensorBytes({ dtype, shape })
    if (fused && fused.index + 1 < fused.shape[0]!) continue
    const whole = fused ?? { name, shape }
    const first = fused ? end - tensorBytes({ dtype, shape: fused.shape }) : begin
    const entry = { dtype, shape: whole.shape, data_offsets: [first, end] }
    entries.set(name, `${JSON.stringify(whole.name)}:${JSON.stringify(entry)}`)
  }
  const first = Object.keys(metadata).length > 0 ? [`"__metadata__":${JSON.stringify(metadata)}`] : []
  const members = [...first, ...(listed ?? [...entries.keys()]).flatMap((name) => entries.get(name) ?? [])]
  const json = Buffer.from(`{${members.join(',')}}`)
  const dataStart = Math.max(lengthBytes + Math.ceil(json.length / 8) * 8, headerBytes)
  const header = new Uint8Array(dataStart).fill(0x20)
  new DataView(header.buffer).setBigUint64(0, BigInt(dataStart - lengthBytes), true)
  header.set(json, lengthBytes)
  const offsets = new Map([...begins].map(([name, begin]) => [name, dataStart + begin]))
  return { header, offsets, fileBytes: dataStart + end }
}

async function readHeaderText(path: string): Promise<{ json: string; fileBytes: number }> {
  const advice = 'give an existing safetensors file'
  try {
    const { handle, bytes: fileBytes } = await openRegularFile(path, advice)
    try {
      if (fileBytes < lengthBytes) {
        throw invalid(path, `it has ${fileBytes} bytes; a safetensors file has at least ${lengthBytes}`)
      }
      const readExactly = async (length: number, position: number) => {
        const buffer = Buffer.alloc(length)
        for (let done = 0; done < length;) {
          const { bytesRead } = await handle.read(buffer, done, length - done, position + done)
          if (bytesRead === 0) throw invalid(path, 'it became shorter while it was read')
          done += bytesRead
        }
        return buffer
      }
      // Compared as BigInt: the untrusted 64-bit length need not fit a number.
      const claimed = (await readExactly(lengthBytes, 0)).readBigUInt64LE()
      if (claimed > BigInt(Math.min(maxHeaderBytes, fileBytes - lengthBytes))) {
        const beginning = await readExactly(Math.min(fileBytes, 256), 0)
        const foreign = foreignContents(beginning.toString('latin1'))
        if (foreign !== undefined) throw new SparseGptError('INVALID_CHECKPOINT', `${path} ${foreign}`)
      }
      if (claimed > BigInt(maxHeaderBytes)) {
        throw invalid(path, `its header claims ${claimed} bytes; at most ${maxHeaderBytes} are allowed`)
      }
      if (claimed > BigInt(fileBytes - lengthBytes)) {
        const rest = fileBytes - lengthBytes
        throw invalid(path, `its header claims ${claimed} bytes, but only ${rest} follow: it is truncated`)
      }
      const header = await readExactly(Number(claimed), lengthBytes)
      if (!isUtf8(header)) throw invalid(path, 'its header is not valid UTF-8')
      return { json: header.toString('utf8'), fileBytes }
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw readError(error, path, advice)
  }
}

function parseHeader(path: string, json: string): Record<string, unknown> {
  if (!json.startsWith('{')) throw invalid(path, "its header does not begin with '{'")
  const { twice, depth, keys, plain } = structureOf(json, { depth: maxDepth, keys: maxKeys })
  if (depth > maxDepth) throw invalid(path, `its header is nested more than ${maxDepth} levels deep`)
  if (keys > maxKeys) throw invalid(path, `its header has more than ${maxKeys} entries in one place`)
  if (!plain && json.length > maxOddHeader) {
    throw invalid(path, 'its header has a number that is not a plain integer of at most 15 digits')
  }
  let entries: unknown
  try {
    // Where nothing can be rounded, the parser of the language does it, which is twenty times as fast.
    // Only plain digits become numbers: 1.0, 1e2 and -1 stay text and are refused where an integer is due, and an
    // integer beyond 2^53 is not rounded into a valid one.
    entries = plain
      ? JSON.parse(json)
      : parse(json, null, (digits) => (/^\d+$/.test(digits) ? Number(digits) : { number: digits }))
  } catch (error) {
    throw new SparseGptError(
      'INVALID_CHECKPOINT',
      `${path} is not a valid safetensors file: its header is not valid JSON (${reason(error)})`,
      { cause: error },
    )
  }
  if (twice !== undefined)
    throw invalid(path, `its header has the key ${JSON.stringify(twice)} twice in one place`)
  return entries as Record<string, unknown>
}

function readMetadata(path: string, value: unknown): Record<string, string> {
  if (value === undefined || value === null) return {}
  if (!isMap(value)) throw invalid(path, '__metadata__ must be a map of strings')
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string')
      throw invalid(path, `__metadata__ entry ${JSON.stringify(key)} must be a string`)
  }
  return value as Record<string, string>
}

function readEntry(path: string, name: string, entry: unknown, dataStart: number): StoredTensor {
  const wrong = (what: string) => invalid(path, `tensor ${JSON.stringify(name)} ${what}`)
  // Other fields are read over, as the format's own library does.
  if (!isMap(entry)) throw wrong('must have the fields dtype, shape and data_offsets')
  for (const field of ['dtype', 'shape', 'data_offsets']) {
    if (!Object.hasOwn(entry, field)) throw wrong(`lacks the field ${field}`)
  }
  const { dtype, shape, data_offsets: range } = entry
  if (!isStoredDType(dtype)) {
    throw wrong(`has the dtype ${quoted(dtype)}; known are ${Object.keys(storedBytes).join(', ')}`)
  }
  if (!isSizes(shape)) throw wrong('has a shape that is not a list of non-negative integers below 2^53')
  if (!isSizes(range) || range.length !== 2) {
    throw wrong('has data_offsets that are not two non-negative integers below 2^53')
  }
  const [begin, end] = range as [number, number]
  if (begin > end) throw wrong(`has data_offsets that end (${end}) before they begin (${begin})`)
  // BigInt: [2^40, 2^40, 0] must not pass, or fail, by what rounding makes of it.
  let bits = BigInt(8 * storedBytes[dtype])
  for (const size of shape) {
    bits *= BigInt(size)
    if (bits / 8n > BigInt(Number.MAX_SAFE_INTEGER)) throw wrong('has a shape with more than 2^53 bytes')
  }
  if (bits % 8n !== 0n) throw wrong(`has elements of ${dtype} that do not fill whole bytes`)
  const bytes = bits / 8n
  if (bytes !== BigInt(end - begin)) {
    throw wrong(`has ${end - begin} bytes of data, but its dtype and shape need ${bytes}`)
  }
  const offset = dataStart + begin
  if (!Number.isSafeInteger(dataStart + end)) throw wrong('lies beyond 2^53 bytes')
  return { name, dtype, shape, file: path, offset, bytes: end - begin }
}

function checkLayout(path: string, tensors: StoredTensor[], dataStart: number, fileBytes: number): void {
  let end = dataStart
  for (const { name, offset, bytes } of tensors) {
    if (offset !== end) {
      const fault = offset < end ? 'overlaps the tensor before it' : 'leaves a gap before it'
      const [is, due] = [offset - dataStart, end - dataStart]
      throw invalid(path, `tensor ${JSON.stringify(name)} ${fault}: it begins at ${is}, not ${due}`)
    }
    end += bytes
  }
  if (end !== fileBytes) {
    const fault = end > fileBytes ? 'it is truncated' : 'there are bytes after the last tensor'
    throw invalid(path, `its header describes ${end} bytes, but it has ${fileBytes}: ${fault}`)
  }
}

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const isSizes = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((size) => Number.isSafeInteger(size))

const isStoredDType = (value: unknown): value is StoredDType =>
  typeof value === 'string' && Object.hasOwn(storedBytes, value)

function invalid(path: string, what: string): SparseGptError {
  return new SparseGptError('INVALID_CHECKPOINT', `${path} is not a valid safetensors file: ${what}`)
}
