import { open, type FileHandle } from 'node:fs/promises'
import { SparseGptError } from '../errors.js'
import { readError } from './read-error.js'
import { storedBytes, type PackedParts, type StoredTensor, type TensorLayout } from './safetensors.js'

const suffix = '.weight'
const partName = /^(.+)\.(compressed|bitmask|row_offsets|shape)$/

/**
 * The tensors that are stored of a packed matrix [rows, columns] with `count` values, as compressed-tensors 0.9 to 0.14 called them
 * (sparse-bitmask). The name of the matrix ends in '.weight'.
 */
export function packedLayouts(
  { name, dtype, shape }: TensorLayout,
  count: number,
): Record<keyof PackedParts, TensorLayout> {
  const [rows = 0, columns = 0] = shape
  const prefix = name.slice(0, -suffix.length)
  return {
    shape: { name: `${prefix}.shape`, dtype: 'I64', shape: [2] },
    compressed: { name: `${prefix}.compressed`, dtype, shape: [count] },
    bitmask: { name: `${prefix}.bitmask`, dtype: 'U8', shape: [rows, Math.ceil(columns / 8)] },
    rowOffsets: { name: `${prefix}.row_offsets`, dtype: 'I64', shape: [rows] },
  }
}

/**
 * Puts a packed matrix in the place of the first of its four parts among `tensors`, which are those of one file. Its sizes are read and
 * checked against those of its parts; whether their contents fit together shows when it is unpacked.
 *
 * @throws SparseGptError INVALID_CHECKPOINT, FILE_NOT_FOUND.
 */
export async function joinPacked(file: string, tensors: readonly StoredTensor[]): Promise<StoredTensor[]> {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  const prefixes = new Set(
    tensors.flatMap(({ name }) => {
      const [, prefix, part] = partName.exec(name) ?? []
      return prefix === undefined || part === 'shape' ? [] : [prefix]
    }),
  )
  if (prefixes.size === 0) return [...tensors]
  const joined: StoredTensor[] = []
  const begun = new Set<string>()
  try {
    const handle = await open(file, 'r')
    try {
      for (const tensor of tensors) {
        const prefix = partName.exec(tensor.name)?.[1]
        if (prefix === undefined || !prefixes.has(prefix)) joined.push(tensor)
        else if (!begun.has(prefix)) joined.push(await join(file, handle, prefix, byName))
        if (prefix !== undefined) begun.add(prefix)
      }
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw readError(error, file, 'the model must stay where it was opened')
  }
  return joined
}

async function join(
  file: string,
  handle: FileHandle,
  prefix: string,
  tensors: ReadonlyMap<string, StoredTensor>,
): Promise<StoredTensor> {
  const name = `${prefix}${suffix}`
  const wrong = (what: string) =>
    new SparseGptError('INVALID_CHECKPOINT', `${file}: the packed tensor ${JSON.stringify(name)} ${what}`)
  if (tensors.has(name)) throw wrong('is there unpacked, too')
  const part = (end: string) => {
    const tensor = tensors.get(`${prefix}.${end}`)
    if (tensor) return tensor
    throw wrong(`lacks ${prefix}.${end}: shape, compressed, bitmask and row_offsets must be in one file`)
  }
  const packed = {
    shape: part('shape'),
    compressed: part('compressed'),
    bitmask: part('bitmask'),
    rowOffsets: part('row_offsets'),
  }
  const check = (
    tensor: StoredTensor,
    { dtype, shape }: { dtype: string; shape: readonly number[] },
    is: string,
  ) => {
    if (tensor.dtype === dtype && tensor.shape.join() === shape.join()) return
    const found = `${tensor.dtype} [${tensor.shape.join(', ')}]`
    throw wrong(`is damaged: ${tensor.name} is ${found}, expected ${dtype} [${shape.join(', ')}]${is}`)
  }
  check(packed.shape, { dtype: 'I64', shape: [2] }, '')
  const sizes = Buffer.alloc(packed.shape.bytes)
  const { bytesRead } = await handle.read(sizes, 0, sizes.length, packed.shape.offset)
  if (bytesRead < sizes.length) throw wrong('is cut off: the file became shorter while it was read')
  const [rows, columns] = [sizes.readBigInt64LE(0), sizes.readBigInt64LE(8)]
  const { dtype, bytes: _, shape: values } = packed.compressed
  const most = BigInt(Number.MAX_SAFE_INTEGER)
  if (rows < 0n || columns < 0n || rows > most || columns > most || rows * columns * 8n > most) {
    throw wrong(`is damaged: ${packed.shape.name} holds [${rows}, ${columns}], which is no shape of a matrix`)
  }
  const shape = [Number(rows), Number(columns)]
  const layouts = packedLayouts({ name, dtype, shape }, values[0] ?? 0)
  const source = `, for ${packed.shape.name} holds [${shape.join(', ')}]`
  check(packed.bitmask, layouts.bitmask, source)
  check(packed.rowOffsets, layouts.rowOffsets, source)
  check(packed.compressed, layouts.compressed, '')
  const elements = shape[0]! * shape[1]!
  if (values[0]! > elements) {
    throw wrong(
      `is damaged: ${packed.compressed.name} has ${values[0]!} values, but the matrix ${elements} elements`,
    )
  }
  const bytes = elements * storedBytes[dtype]
  return { name, dtype, shape, file, offset: packed.compressed.offset, bytes, packed }
}
