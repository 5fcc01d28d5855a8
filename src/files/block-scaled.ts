import { SparseGptError } from '../errors.js'
import { mostExperts } from './fused.js'
import { quantizationEntry } from './pack-quantized.js'
import { tensorBytes, type ScaledMatrix, type StoredTensor } from './safetensors.js'
import { gather } from './strided.js'

/** How matrices are stored whose blocks have a scale each. */
export type BlockScaling =
  /** Float8 elements (e4m3) X.weight, with X.weight_scale_inv for blocks of so many rows and columns, as DeepSeek-V3 has them. */
  | { form: 'fp8'; block: [rows: number, columns: number] }
  /**
   * Microscaling: float4 elements (e2m1), 32 of which share a power of two (OCP MX 1.0). The matrices [out, in] of all experts are in
   * X_blocks [experts, out, in / 32, 16] and X_scales [experts, out, in / 32]; they stand for X [experts, in, out], as gpt-oss has it.
   */
  | { form: 'mxfp4' }

/** The scaling by blocks that config.json says the weights have, of the forms that are read; undefined for none. */
export function blockScaling(config: Record<string, unknown>): BlockScaling | undefined {
  const settings = config[quantizationEntry]
  if (typeof settings !== 'object' || settings === null) return undefined
  const { quant_method: method, weight_block_size: block, fmt = 'e4m3' } = settings as Record<string, unknown>
  if (method === 'mxfp4') return { form: 'mxfp4' }
  const isBlock =
    Array.isArray(block) &&
    block.length === 2 &&
    block.every((size) => Number.isSafeInteger(size) && size > 0)
  return method === 'fp8' && isBlock && fmt === 'e4m3'
    ? { form: 'fp8', block: block as [number, number] }
    : undefined
}

/**
 * Puts the bfloat16 matrices that block-scaled ones stand for in their place; their scales are listed no more. Throws
 * INVALID_CHECKPOINT for values without scales, or with scales of another shape.
 */
export function joinScaled<Shard extends { tensors: StoredTensor[] }>(
  shards: readonly Shard[],
  scaling: BlockScaling,
): Shard[] {
  const all = new Map(
    shards.flatMap(({ tensors }) => tensors.map((tensor) => [tensor.name, tensor] as const)),
  )
  const used = new Set<string>()
  const partner = (
    values: StoredTensor,
    name: string,
    dtypes: readonly string[],
    shape: readonly number[],
  ) => {
    const scales = all.get(name)
    if (scales && dtypes.includes(scales.dtype) && scales.shape.join() === shape.join()) {
      used.add(name)
      return scales
    }
    const found = scales ? `${scales.dtype} [${scales.shape.join(', ')}]` : 'missing'
    throw new SparseGptError(
      'INVALID_CHECKPOINT',
      `${values.file}: the scales ${JSON.stringify(name)} of ${JSON.stringify(values.name)} are ${found}, expected ${dtypes.join(' or ')} [${shape.join(', ')}]`,
    )
  }
  const join = scaling.form === 'fp8' ? joinFp8(scaling.block, partner) : joinMxfp4(partner)
  const joined = shards.map((shard) => ({ ...shard, tensors: shard.tensors.flatMap(join) }))
  return joined.map((shard) => ({ ...shard, tensors: shard.tensors.filter(({ name }) => !used.has(name)) }))
}

type Partner = (
  values: StoredTensor,
  name: string,
  dtypes: readonly string[],
  shape: readonly number[],
) => StoredTensor

function joinFp8(block: [number, number], partner: Partner): (tensor: StoredTensor) => StoredTensor[] {
  return (tensor) => {
    const { name, dtype, shape } = tensor
    if (dtype !== 'F8_E4M3' || shape.length !== 2 || !name.endsWith('.weight')) return [tensor]
    const blocks = shape.map((size, i) => Math.ceil(size / block[i]!))
    const scales = partner(tensor, `${name}_scale_inv`, ['F32', 'BF16', 'F16'], blocks)
    return [standsFor(tensor, name, shape, { form: 'fp8', block, values: tensor, scales })]
  }
}

function joinMxfp4(partner: Partner): (tensor: StoredTensor) => StoredTensor[] {
  return (tensor) => {
    const [, stem] = /^(.*)_blocks$/.exec(tensor.name) ?? []
    const [count = 0, rows = 0, groups = 0, bytes] = tensor.shape
    if (stem === undefined || tensor.dtype !== 'U8' || tensor.shape.length !== 4 || bytes !== 16) {
      return [tensor]
    }
    if (!(count >= 1 && count <= mostExperts && rows > 0 && groups > 0)) {
      throw new SparseGptError(
        'INVALID_CHECKPOINT',
        `${tensor.file}: ${JSON.stringify(tensor.name)} is [${tensor.shape.join(', ')}]: experts number 1 to ${mostExperts}, and none is empty`,
      )
    }
    const scales = partner(tensor, `${stem}_scales`, ['U8'], [count, rows, groups])
    const shape = [32 * groups, rows]
    const part = (of: StoredTensor, index: number, sizes: number[]) => {
      const size = of.bytes / count
      return { ...of, shape: sizes, offset: of.offset + index * size, bytes: size }
    }
    return Array.from({ length: count }, (_, index) => ({
      ...standsFor(tensor, `${stem}.${index}.weight`, shape, {
        form: 'mxfp4',
        values: part(tensor, index, [rows, groups, 16]),
        scales: part(scales, index, [rows, groups]),
      }),
      fused: { name: stem, shape: [count, ...shape], index },
    }))
  }
}

function standsFor(at: StoredTensor, name: string, shape: number[], scaled: ScaledMatrix): StoredTensor {
  const layout = { name, dtype: 'BF16' as const, shape }
  return { ...layout, file: at.file, offset: at.offset, bytes: tensorBytes(layout), scaled }
}

/** The elements of a matrix that is stored with scales of blocks: bfloat16, row-major. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
export function expandScaled({ shape, scaled }: StoredTensor & { scaled: ScaledMatrix }): Uint8Array {
  const [rows = 0, columns = 0] = shape
  const elements = new Uint16Array(rows * columns)
  const values = gather(scaled.values)
  if (scaled.form === 'fp8') {
    const [blockRows, blockColumns] = scaled.block
    const scales = floatsOf(scaled.scales)
    const across = Math.ceil(columns / blockColumns)
    for (let i = 0; i < rows; i++) {
      const row = Math.floor(i / blockRows) * across
      for (let j = 0; j < columns; j++) {
        const at = i * columns + j
        elements[at] = bfloat16(float8[values[at]!]! * scales[row + Math.floor(j / blockColumns)]!)
      }
    }
  } else {
    const scales = gather(scaled.scales)
    const table = (tables ??= scaledFloat4())
    // Of the matrix [in, out] a byte has two neighbours in a column.
    for (let group = 0; group < scales.length; group++) {
      const out = Math.floor(group / (rows / 32))
      const first = (group % (rows / 32)) * 32
      for (let i = 0; i < 16; i++) {
        const pair = values[16 * group + i]!
        const at = (first + 2 * i) * columns + out
        elements[at] = table[16 * scales[group]! + (pair & 15)]!
        elements[at + columns] = table[16 * scales[group]! + (pair >> 4)]!
      }
    }
  }
  return new Uint8Array(elements.buffer)
}

function floatsOf(tensor: StoredTensor): Float32Array {
  const bytes = gather(tensor)
  if (tensor.dtype === 'F32') return new Float32Array(bytes.buffer as ArrayBuffer)
  const halves = new Uint16Array(bytes.buffer as ArrayBuffer)
  return Float32Array.from(halves, tensor.dtype === 'BF16' ? fromBfloat16 : fromFloat16)
}

/** The value of a sign, an exponent and a fraction of so many bits: of a float of any size that has no infinities. */
function valueOf(code: number, exponentBits: number, fractionBits: number): number {
  const fraction = code & (2 ** fractionBits - 1)
  const exponent = (code >> fractionBits) & (2 ** exponentBits - 1)
  const sign = code >> (exponentBits + fractionBits) ? -1 : 1
  const bias = 2 ** (exponentBits - 1) - 1
  return exponent === 0
    ? sign * fraction * 2 ** (1 - bias - fractionBits)
    : sign * (1 + fraction / 2 ** fractionBits) * 2 ** (exponent - bias)
}

const fromFloat16 = (code: number) => (((code >> 10) & 31) === 31 ? NaN : valueOf(code, 5, 10))
const fromBfloat16 = (code: number) => new Float32Array(Uint32Array.of(code << 16).buffer)[0]!

/** The values of float8 e4m3 by their codes; it has no infinities. */
const float8 = Float32Array.from({ length: 256 }, (_, code) =>
  (code & 127) === 127 ? NaN : valueOf(code, 4, 3),
)

let tables: Uint16Array | undefined
/** The bfloat16 of every float4 e2m1, by 16 · the scale's exponent + its code. */
const scaledFloat4 = () =>
  Uint16Array.from({ length: 256 * 16 }, (_, i) => bfloat16(valueOf(i % 16, 2, 1) * 2 ** ((i >> 4) - 127)))

const float = new Float32Array(1)
const bitsOfFloat = new Uint32Array(float.buffer)
/** The nearest bfloat16, of two equally near ones the even one. */
function bfloat16(value: number): number {
  float[0] = value
  const [bits = 0] = bitsOfFloat
  if (Number.isNaN(value)) return 0x7fc0
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}
