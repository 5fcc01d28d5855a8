import { open } from 'node:fs/promises'
import { joinCodes } from './coded.js'
import { joinQuantized } from './pack-quantized.js'
import { Parts, prefixOf } from './parts.js'
import { readError } from './read-error.js'
import type { PackedParts, StoredTensor, TensorLayout } from './safetensors.js'

/** Where parts begin that lie one after another and have these lengths, and where the last one ends. */
export function startsOf(lengths: ArrayLike<number>): { starts: BigInt64Array; end: number } {
  const starts = new BigInt64Array(lengths.length)
  let end = 0
  for (let part = 0; part < lengths.length; part++) {
    starts[part] = BigInt(end)
    end += lengths[part]!
  }
  return { starts, end }
}

/**
 * The tensors that are stored of a packed matrix [rows, columns] with `count` values, as compressed-tensors 0.9 to 0.14 called them
 * (sparse-bitmask). The name of the matrix ends in '.weight'.
 */
export function packedLayouts(weight: TensorLayout, count: number): Record<keyof PackedParts, TensorLayout> {
  const { dtype, shape } = weight
  const [rows = 0, columns = 0] = shape
  const prefix = prefixOf(weight)
  return {
    shape: { name: `${prefix}.shape`, dtype: 'I64', shape: [2] },
    compressed: { name: `${prefix}.compressed`, dtype, shape: [count] },
    bitmask: { name: `${prefix}.bitmask`, dtype: 'U8', shape: [rows, Math.ceil(columns / 8)] },
    rowOffsets: { name: `${prefix}.row_offsets`, dtype: 'I64', shape: [rows] },
  }
}

/** A form in which a matrix is stored as several tensors. */
interface Form {
  /** The ends of the names that show that a matrix has this form. */
  marks: readonly string[]
  /** The ends of all names of its parts. */
  ends: readonly string[]
  /** The ends that must be there, for messages. */
  needed: string
  /** Checks the parts and makes the matrix of them. Throws INVALID_CHECKPOINT. */
  join: (parts: Parts) => Promise<StoredTensor>
}

const codes: Form = {
  marks: ['code_shape', 'codes'],
  ends: ['code_shape', 'codes', 'scale', 'zero_point', 'bitmask', 'row_offsets'],
  needed: 'code_shape, codes and scale',
  join: joinCodes,
}

const values: Form = {
  marks: ['compressed', 'bitmask', 'row_offsets'],
  ends: ['shape', 'compressed', 'bitmask', 'row_offsets'],
  needed: 'shape, compressed, bitmask and row_offsets',
  join: joinValues,
}

const quantized = (bits: number): Form => ({
  marks: ['weight_packed'],
  ends: ['weight_packed', 'weight_scale', 'weight_shape', 'weight_zero_point'],
  needed: 'weight_packed, weight_scale and weight_shape',
  join: (parts) => joinQuantized(parts, bits),
})

/**
 * Puts matrices that are packed, of values or of codes, in the place of the first of their parts among `tensors`, which are those of one
 * file. Sizes are read and checked against those of the parts; whether the contents fit together shows when a matrix is unpacked.
 *
 * @throws SparseGptError INVALID_CHECKPOINT, FILE_NOT_FOUND.
 */
export function joinPacked(file: string, tensors: readonly StoredTensor[]): Promise<StoredTensor[]> {
  return join(file, tensors, [codes, values])
}

/** The same for matrices that are stored as compressed-tensors' pack-quantized has them, with codes of `bits` bits. */
export function joinPackQuantized(
  file: string,
  tensors: readonly StoredTensor[],
  bits: number,
): Promise<StoredTensor[]> {
  return join(file, tensors, [quantized(bits)])
}

async function join(
  file: string,
  tensors: readonly StoredTensor[],
  forms: readonly Form[],
): Promise<StoredTensor[]> {
  const split = ({ name }: StoredTensor) => {
    const [, prefix = '', end = ''] = /^(.+)\.([^.]*)$/.exec(name) ?? []
    return { prefix, end }
  }
  const formOf = new Map<string, Form>()
  for (const form of forms) {
    for (const { prefix, end } of tensors.map(split))
      if (form.marks.includes(end) && !formOf.has(prefix)) formOf.set(prefix, form)
  }
  if (formOf.size === 0) return [...tensors]
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  const joined: StoredTensor[] = []
  const begun = new Set<string>()
  try {
    const handle = await open(file, 'r')
    try {
      for (const tensor of tensors) {
        const { prefix, end } = split(tensor)
        const form = formOf.get(prefix)
        if (!form?.ends.includes(end)) {
          joined.push(tensor)
        } else if (!begun.has(prefix)) {
          joined.push(await form.join(new Parts(file, handle, prefix, byName, form.needed)))
          begun.add(prefix)
        }
      }
    } finally {
      await handle.close()
    }
  } catch (error) {
    throw readError(error, file, 'the model must stay where it was opened')
  }
  return joined
}

async function joinValues(parts: Parts): Promise<StoredTensor> {
  const packed = {
    shape: parts.part('shape'),
    compressed: parts.part('compressed'),
    bitmask: parts.part('bitmask'),
    rowOffsets: parts.part('row_offsets'),
  }
  parts.check(packed.shape, { dtype: 'I64', shape: [2] })
  const shape = parts.shapeOf(packed.shape, await parts.integers(packed.shape))
  const { dtype, shape: values } = packed.compressed
  const layouts = packedLayouts({ name: parts.name, dtype, shape }, values[0] ?? 0)
  const source = `, for ${packed.shape.name} holds [${shape.join(', ')}]`
  parts.check(packed.bitmask, layouts.bitmask, source)
  parts.check(packed.rowOffsets, layouts.rowOffsets, source)
  parts.check(packed.compressed, layouts.compressed)
  const elements = shape[0] * shape[1]
  if (values[0]! > elements) {
    throw parts.wrong(
      `is damaged: ${packed.compressed.name} has ${values[0]!} values, but the matrix ${elements} elements`,
    )
  }
  return parts.joined({ dtype, shape }, packed.compressed, { packed })
}
