import { prefixOf, type Parts } from './parts.js'
import { type CodedMatrix, type StoredTensor, type TensorLayout } from './safetensors.js'

/** How the weights of a matrix are rounded: to a grid for each row of [out, in] and group of its columns. */
export interface Grid {
  /** The number of bits of a code, 2 … 8. */
  bits: number
  /** The number of columns that share a grid; they divide the row. */
  groupSize: number
  /** Whether every zero point is the middle code, 2^(bits - 1). */
  symmetric: boolean
  /** Whether the matrix is stored as [in, out]; its codes are [out, in]. */
  transposed: boolean
}

/** The names and sizes of the parts of a matrix of codes, but for whether there is a bitmask. */
export type CodeLayouts = Record<
  'shape' | 'rowOffsets' | 'scale' | 'zeroPoint' | 'bitmask' | 'codes',
  TensorLayout
>

/** The bytes of `count` codes in a row. */
export const codeBytes = (count: number, bits: number): number => Math.ceil((count * bits) / 8)

/** The tensors that may be stored of a matrix of codes, whose name ends in '.weight', with `bytes` of codes in all. */
export function codeLayouts(weight: TensorLayout, grid: Omit<Grid, 'symmetric'>, bytes: number): CodeLayouts {
  const prefix = prefixOf(weight)
  const [rows = 0, columns = 0] = grid.transposed ? [...weight.shape].reverse() : weight.shape
  const groups = [rows, columns / grid.groupSize]
  return {
    shape: { name: `${prefix}.code_shape`, dtype: 'I64', shape: [grid.transposed ? 5 : 4] },
    rowOffsets: { name: `${prefix}.row_offsets`, dtype: 'I64', shape: [rows] },
    scale: { name: `${prefix}.scale`, dtype: weight.dtype, shape: groups },
    zeroPoint: { name: `${prefix}.zero_point`, dtype: 'U8', shape: groups },
    bitmask: { name: `${prefix}.bitmask`, dtype: 'U8', shape: [rows, Math.ceil(columns / 8)] },
    codes: { name: `${prefix}.codes`, dtype: 'U8', shape: [bytes] },
  }
}

/** Checks the parts of a matrix of codes, and makes one tensor of them. Throws INVALID_CHECKPOINT. */
export async function joinCodes(parts: Parts): Promise<StoredTensor> {
  const stored: CodedMatrix['parts'] = {
    shape: parts.part('code_shape'),
    codes: parts.part('codes'),
    scale: parts.part('scale'),
    ...given('zeroPoint', parts.optional('zero_point')),
    ...given('bitmask', parts.optional('bitmask')),
    ...given('rowOffsets', parts.optional('row_offsets')),
  }
  const { shape: sizes, codes, scale, zeroPoint, bitmask, rowOffsets } = stored
  // A matrix that is stored as [in, out] has a fifth number, 1.
  const transposed = sizes.shape[0] === 5
  parts.check(sizes, { dtype: 'I64', shape: [transposed ? 5 : 4] })
  const integers = await parts.integers(sizes)
  const [rows, columns] = parts.shapeOf(sizes, integers)
  const [bits, groupSize, mark] = integers.slice(2).map(Number) as [number, number, number?]
  if (!(bits >= 2 && bits <= 8) || !(groupSize >= 1) || columns % groupSize !== 0 || (mark ?? 1) !== 1) {
    const due = 'rows, columns, 2 to 8 bits and a group size that divides the columns'
    throw parts.wrong(`is damaged: ${sizes.name} holds [${integers.join(', ')}], expected ${due}`)
  }
  const source = `, for ${sizes.name} holds [${integers.join(', ')}]`
  if (!bitmask !== !rowOffsets) {
    throw parts.wrong('is damaged: bitmask and row_offsets must both be there, or neither')
  }
  const all = rows * codeBytes(columns, bits)
  const { name } = parts
  const shape = transposed ? [columns, rows] : [rows, columns]
  const weight = { name, dtype: scale.dtype, shape }
  const layouts = codeLayouts(weight, { bits, groupSize, transposed }, bitmask ? (codes.shape[0] ?? 0) : all)
  parts.checkScale(scale, rows, columns)
  for (const [part, layout] of [
    [scale, layouts.scale],
    [zeroPoint, layouts.zeroPoint],
    [bitmask, layouts.bitmask],
    [rowOffsets, layouts.rowOffsets],
    [codes, layouts.codes],
  ] as const)
    if (part) parts.check(part, layout, source)
  if (codes.bytes > all) {
    throw parts.wrong(
      `is damaged: ${codes.name} has ${codes.bytes} bytes, but the matrix ${all} at most${source}`,
    )
  }
  return parts.joined(weight, codes, { codes: { bits, groupSize, transposed, parts: stored } })
}

const given = <Name extends string>(name: Name, part: StoredTensor | undefined) =>
  (part ? { [name]: part } : {}) as Partial<Record<Name, StoredTensor>>
