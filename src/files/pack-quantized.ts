import type { Parts } from './parts.js'
import { prefixOf } from './parts.js'
import type { StoredTensor, TensorLayout } from './safetensors.js'
import type { Grid } from './coded.js'

/** The entry of config.json that says how weights are quantized. */
export const quantizationEntry = 'quantization_config'

/** The bits of a code that the format has here: those of which whole codes fill a word of 32 bits. */
export const packQuantizedBits: readonly number[] = [4, 8]

/** The number of words of 32 bits that `count` codes take. */
export const words = (count: number, bits: number): number => Math.ceil((count * bits) / 32)

/** The names and sizes of the tensors that compressed-tensors' format pack-quantized has of a matrix [out, in]. */
export function quantizedLayouts(
  weight: TensorLayout,
  { bits, groupSize }: Pick<Grid, 'bits' | 'groupSize'>,
): Record<'shape' | 'codes' | 'scale' | 'zeroPoint', TensorLayout> {
  const prefix = prefixOf(weight)
  const [rows = 0, columns = 0] = weight.shape
  const groups = columns / groupSize
  return {
    codes: { name: `${prefix}.weight_packed`, dtype: 'I32', shape: [rows, words(columns, bits)] },
    scale: { name: `${prefix}.weight_scale`, dtype: weight.dtype, shape: [rows, groups] },
    shape: { name: `${prefix}.weight_shape`, dtype: 'I64', shape: [2] },
    zeroPoint: { name: `${prefix}.weight_zero_point`, dtype: 'I32', shape: [words(rows, bits), groups] },
  }
}

/** Checks the parts of a matrix, and makes one tensor of them. Throws INVALID_CHECKPOINT. */
export async function joinQuantized(parts: Parts, bits: number): Promise<StoredTensor> {
  const [shape, codes, scale] = [
    parts.part('weight_shape'),
    parts.part('weight_packed'),
    parts.part('weight_scale'),
  ]
  const zeroPoint = parts.optional('weight_zero_point')
  parts.check(shape, { dtype: 'I64', shape: [2] })
  const [rows, columns] = parts.shapeOf(shape, await parts.integers(shape))
  const groups = parts.checkScale(scale, rows, columns)
  const weight = { name: parts.name, dtype: scale.dtype, shape: [rows, columns] }
  const groupSize = columns / groups
  const layouts = quantizedLayouts(weight, { bits, groupSize })
  const source = `, for ${shape.name} holds [${rows}, ${columns}] and config.json says ${bits} bits`
  parts.check(codes, layouts.codes, source)
  if (zeroPoint) parts.check(zeroPoint, layouts.zeroPoint, source)
  const stored = { shape, codes, scale, ...(zeroPoint && { zeroPoint }) }
  return parts.joined(weight, codes, { codes: { bits, groupSize, transposed: false, parts: stored } })
}

/** Zero points [rows, groups] as they are packed: down each column, words [words, groups]. */
export function packDown(zeroPoints: Uint8Array, groups: number, bits: number): Int32Array {
  const packed = new Int32Array(words(zeroPoints.length / groups, bits) * groups)
  const perWord = 32 / bits
  for (const [i, zero] of zeroPoints.entries()) {
    const row = Math.floor(i / groups)
    packed[Math.floor(row / perWord) * groups + (i % groups)]! |= zero << (bits * (row % perWord))
  }
  return packed
}

/** The way back, for `rows` rows. */
export function unpackDown(packed: Int32Array, rows: number, groups: number, bits: number): Uint8Array {
  const perWord = 32 / bits
  const zeroPoints = new Uint8Array(rows * groups)
  for (let i = 0; i < zeroPoints.length; i++) {
    const row = Math.floor(i / groups)
    const word = packed[Math.floor(row / perWord) * groups + (i % groups)]!
    zeroPoints[i] = (word >>> (bits * (row % perWord))) & (2 ** bits - 1)
  }
  return zeroPoints
}

/**
 * The bits of a code where a config.json says that weights are stored in the format pack-quantized, in the form that is read here: whole
 * numbers of 4 or 8 bits with a scale for each row or group, activations as they are. undefined where it says nothing, or anything else.
 */
export function packQuantized(config: Record<string, unknown>): number | undefined {
  const settings = config[quantizationEntry]
  if (!isMap(settings)) return undefined
  const {
    quant_method: method,
    format,
    quantization_status: status = 'compressed',
    config_groups: groups,
  } = settings
  if (method !== 'compressed-tensors' || format !== 'pack-quantized' || status !== 'compressed')
    return undefined
  const others = ['kv_cache_scheme', 'sparsity_config', 'transform_config']
  if (!isMap(groups) || !others.every((name) => isEmpty(settings[name]))) return undefined
  const bits = Object.values(groups).map(bitsOf)
  return bits.every((each) => each === bits[0]) ? bits[0] : undefined
}

/** The bits of one of config_groups. */
function bitsOf(group: unknown): number | undefined {
  if (!isMap(group) || !isMap(group['weights'])) return undefined
  const { input_activations: input, output_activations: output, format = 'pack-quantized' } = group
  const { num_bits: bits, type = 'int', strategy, dynamic = false, actorder } = group['weights']
  const plain = isEmpty(input) && isEmpty(output) && (format ?? 'pack-quantized') === 'pack-quantized'
  const known = type === 'int' && (strategy === 'group' || strategy === 'channel') && dynamic === false
  // With "group" columns are in another order, which the file says.
  const ordered = isEmpty(actorder) || actorder === 'weight' || actorder === 'static'
  return plain && known && ordered && packQuantizedBits.includes(bits as number)
    ? (bits as number)
    : undefined
}

/**
 * The entry of config.json for weights on grids, as transformers and vLLM read it. `tensors`: those of the weight files, among which
 * matrices that are not quantized are to be left alone.
 */
export function quantizationConfig(
  { bits, groupSize, symmetric }: { bits: number; groupSize: number | undefined; symmetric: boolean },
  tensors: readonly Pick<TensorLayout, 'name' | 'shape'>[],
): Record<string, unknown> {
  const plain = tensors.filter(({ name, shape }) => name.endsWith('.weight') && shape.length === 2)
  const weights = {
    num_bits: bits,
    type: 'int',
    symmetric,
    strategy: groupSize === undefined ? 'channel' : 'group',
    group_size: groupSize ?? null,
    dynamic: false,
    observer: 'minmax',
  }
  const scheme = { targets: ['Linear'], weights, input_activations: null, output_activations: null }
  return {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    quantization_status: 'compressed',
    config_groups: { group_0: scheme },
    ignore: [...new Set(['lm_head', ...plain.map(prefixOf)])].sort(),
    kv_cache_scheme: null,
  }
}

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const isEmpty = (value: unknown) =>
  value === undefined || value === null || (isMap(value) && Object.keys(value).length === 0)
