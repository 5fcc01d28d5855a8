import { SparseGptError } from '../errors.js'
import { isPacked, storedBytes, type FusedPart, type StoredTensor, type TensorLayout } from './safetensors.js'

/** The most experts that are taken for such. */
export const mostExperts = 2 ** 15

/** The names of tensors that hold a matrix, or a bias, of every expert, and the ends of the names of those. */
const forms = [
  { name: /^(.*\bexperts\.(?:gate_up_proj|down_proj))$/, dimensions: 3, end: 'weight' },
  { name: /^(.*\bexperts\.(?:gate_up_proj|down_proj))_bias$/, dimensions: 2, end: 'bias' },
  { name: /^(.*\.(?:input|output)_linear)\.weight$/, dimensions: 3, end: 'weight' },
]

/**
 * Puts the matrices of all experts in the place of a tensor that holds them, such as M.experts.down_proj [experts, in, out]: they are
 * M.experts.down_proj.0.weight and so on. Throws INVALID_CHECKPOINT when the file has such a name, too.
 */
export function splitFused(tensors: readonly StoredTensor[]): StoredTensor[] {
  const names = new Set(tensors.map(({ name }) => name))
  return tensors.flatMap((tensor) => {
    const { shape, name, strides } = tensor
    const [count = 0, ...rest] = shape
    const form = forms.find((one) => one.dimensions === shape.length && one.name.test(name))
    if (!form || count < 1 || count > mostExperts || isPacked(tensor)) return [tensor]
    const stem = form.name.exec(name)![1]!
    const bytes = tensor.bytes / count
    const step = strides ? strides[0]! * storedBytes[tensor.dtype] : bytes
    return Array.from({ length: count }, (_, index) => {
      const own = `${stem}.${index}.${form.end}`
      if (names.has(own)) {
        const message = `${tensor.file} has the tensors ${JSON.stringify(name)} and ${JSON.stringify(own)}, of which one is a part of the other`
        throw new SparseGptError('INVALID_CHECKPOINT', message)
      }
      return {
        ...tensor,
        name: own,
        shape: rest,
        offset: tensor.offset + index * step,
        bytes,
        fused: { name, shape, index },
        ...(strides && { strides: strides.slice(1) }),
      }
    })
  })
}

/**
 * The tensors of an encoded file, where those are marked that have the names of all parts of a tensor: it was taken apart to be encoded, and
 * is one when it is decoded.
 */
export function markFused(tensors: readonly StoredTensor[]): StoredTensor[] {
  const parts = new Map<string, StoredTensor[]>()
  const placeOf = ({ name, shape }: StoredTensor) => {
    const [, stem = '', index, end] = /^(.*)\.(\d+)\.(weight|bias)$/.exec(name) ?? []
    const whole = [`${stem}.${end}`, end === 'bias' ? `${stem}_bias` : stem].find((one) =>
      forms.some((form) => form.end === end && form.dimensions === shape.length + 1 && form.name.test(one)),
    )
    const isPart = whole !== undefined && Number(index) < mostExperts
    return isPart ? { whole, index: Number(index) } : undefined
  }
  for (const tensor of tensors) {
    const place = placeOf(tensor)
    if (!place) continue
    const known = parts.get(place.whole) ?? []
    parts.set(place.whole, known)
    known[place.index] = tensor
  }
  return tensors.flatMap((tensor) => {
    const place = placeOf(tensor)
    const all = place && [...parts.get(place.whole)!]
    const alike = (other: StoredTensor | undefined) =>
      other?.dtype === tensor.dtype && other.shape.join() === tensor.shape.join()
    if (!place || !all?.every(alike)) return [tensor]
    const shape = [all.length, ...tensor.shape]
    // They come together, in the place of the first.
    if (place.index > 0) return []
    return all.map((part, index) => ({ ...part, fused: { name: place.whole, shape, index } }))
  })
}

/** The same tensors, of which those are parts of others only that lie with all other parts of these one after the other. */
export function wholeFused<Layout extends TensorLayout>(tensors: readonly Layout[]): Layout[] {
  const isWhole = (at: number, { name, shape: [count = 0], index }: FusedPart) =>
    Array.from({ length: count }, (_, i) => tensors[at - index + i]?.fused).every(
      (part, i) => part?.name === name && part.index === i,
    )
  const counted = new Map<string, boolean>()
  return tensors.map((tensor, at) => {
    const { fused } = tensor
    if (!fused) return tensor
    if (!counted.has(fused.name)) counted.set(fused.name, isWhole(at, fused))
    if (counted.get(fused.name)) return tensor
    const { fused: _, ...alone } = tensor
    return alone as Layout
  })
}
