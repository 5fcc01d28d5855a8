import { openCheckpoint, type Checkpoint, type StoredTensor } from '../files/checkpoint.js'
import { resolveModel } from '../hub/model-folder.js'
import type { DownloadOptions } from '../hub/snapshot.js'
import { checkNotQuantized } from '../models/quantization.js'
import { namedLinears } from '../models/specs.js'
import { familyOf } from '../models/registry.js'
import { Weights } from '../models/weights.js'
import { Device, type Tensor } from '../native/device.js'
import type { PathOrUrl } from '../options.js'

export interface TensorReport {
  name: string
  shape: number[]
  /** The element type as in the file: 'BF16', 'F32', … */
  dtype: string
  /** The share of zeros; null for tensors that are not of a float type. */
  sparsity: number | null
  /** The patterns of 2:4 and 4:8 that a matrix conforms to: in every group of m neighbours along its inputs at least n are zero. */
  patterns: string[]
}

/** The tensors of one kind, such as the same layer of every block. */
export interface KindReport {
  /** What they are called within a block, such as 'mlp.up_proj', a matrix outside of blocks by its own name; 'vectors' are norms and biases. */
  kind: string
  /** Whether they are matrices of the blocks' linear layers, which pruning is about; false for all of an unknown architecture. */
  linear: boolean
  /** The number of tensors. */
  tensors: number
  /** The number of weights of them all. */
  weights: number
  /** The share of zeros; null for tensors that are not of a float type. */
  sparsity: number | null
}

export interface Inspection {
  /** The share of zeros over all tensors of a float type. */
  sparsity: number
  /** What the model is made of, in the order of its layers. */
  kinds: KindReport[]
  /** All tensors, in the order of its layers. */
  tensors: TensorReport[]
}

const patterns = [
  [2, 4],
  [4, 8],
] as const

/**
 * Counts the zeros of every tensor of a checkpoint, of whatever architecture; a folder or a hub id, as for loadModel.
 *
 * Throws FILE_NOT_FOUND, DOWNLOAD_FAILED, INVALID_CHECKPOINT, UNSUPPORTED_MODEL (weights in another format, or quantized),
 * DEVICE_UNAVAILABLE.
 */
export async function inspect(pathOrHubId: PathOrUrl, options: DownloadOptions = {}): Promise<Inspection> {
  const { folder } = await resolveModel(pathOrHubId, options)
  const checkpoint = await openCheckpoint(folder)
  checkNotQuantized(checkpoint.config)
  const device = new Device('cpu')
  try {
    const weights = new Weights(device, checkpoint, 'float32')
    const linears = linearWeights(weights, checkpoint)
    const tensors: TensorReport[] = []
    const kinds = new Map<string, KindReport & { zeros: number }>()
    let zeros = 0
    let elements = 0
    for (const { name, shape, dtype } of inLayerOrder(checkpoint, linears)) {
      const size = shape.reduce((a, b) => a * b, 1)
      const counts = ['F32', 'BF16', 'F16'].includes(dtype)
        ? await countZeros(device, weights.stored(name, shape), linears.get(name)?.transposed ?? false)
        : undefined
      if (counts) {
        zeros += counts[0] ?? 0
        elements += size
      }
      const kind = kindOf(name, shape)
      const of = kinds.get(kind) ?? {
        kind,
        linear: linears.has(name),
        tensors: 0,
        weights: 0,
        sparsity: null,
        zeros: 0,
      }
      kinds.set(kind, of)
      of.tensors++
      of.weights += size
      of.zeros += counts?.[0] ?? 0
      if (counts && of.weights > 0) of.sparsity = of.zeros / of.weights
      tensors.push({
        name,
        shape,
        dtype,
        sparsity: counts && size > 0 ? (counts[0] ?? 0) / size : null,
        patterns:
          shape.length === 2
            ? patterns.filter((_, i) => counts?.[i + 1] === 1).map(([n, m]) => `${n}:${m}`)
            : [],
      })
    }
    const ofKinds = [...kinds.values()].map(({ zeros: _, ...kind }) => kind)
    return { sparsity: elements > 0 ? zeros / elements : 0, kinds: ofKinds, tensors }
  } finally {
    await device.close()
  }
}

async function countZeros(device: Device, stored: Tensor, transposed: boolean): Promise<number[]> {
  const made: Tensor[] = [stored]
  try {
    const stats = device.within(made, () =>
      device.countZeros(
        transposed ? device.transpose(stored, stored.dtype) : stored,
        device.upload(Int32Array.from(patterns.flat()), [patterns.length, 2]),
      ),
    )
    device.releasePages(stored)
    return [...(await device.read(stats))]
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}

/** The matrices of the blocks' linear layers, if the architecture is known, in the order of the model, and whether they are stored as [in, out]. */
function linearWeights(weights: Weights, checkpoint: Checkpoint): Map<string, { transposed: boolean }> {
  try {
    const architecture = familyOf(checkpoint.config).build(checkpoint.config, weights)
    const linears = Array.from({ length: architecture.blockCount }, (_, index) =>
      namedLinears(architecture.block(index)),
    )
    return new Map(
      linears.flat().map(({ name, layout }) => [`${name}.weight`, { transposed: layout === 'in-out' }]),
    )
  } catch {
    return new Map()
  }
}

/** The number of the block that a tensor is of, and what it is called there: 'layers.11.mlp.up_proj.weight' is mlp.up_proj of 11. */
function placeOf(name: string): { block: number; inner: string } | undefined {
  const [, block, inner] = /(?:^|\.)(\d+)\.(.+)$/.exec(name) ?? []
  return inner === undefined ? undefined : { block: Number(block), inner }
}

/** What tensors that do the same are called together: experts, too, are of one kind. */
function kindOf(name: string, shape: readonly number[]): string {
  if (shape.length < 2) return 'vectors'
  const named = (placeOf(name)?.inner ?? name).replace(/\.weight$/, '')
  return named.replace(/(^|\.)\d+(?=\.|$)/g, '$1*')
}

/** The tensors from the embeddings over the blocks to the head. Within a block linear layers come last, in the order of the model. */
function inLayerOrder({ tensors }: Checkpoint, linears: ReadonlyMap<string, unknown>): StoredTensor[] {
  const order = new Map([...linears.keys()].map((name, index) => [name, index]))
  const keyOf = ({ name }: StoredTensor): [block: number, linear: number] => {
    const outside = /embed|wte|wpe/.test(name) ? -1 : Infinity
    return [placeOf(name)?.block ?? outside, order.get(name) ?? -1]
  }
  const keyed = [...tensors.values()].map((tensor) => ({ tensor, key: keyOf(tensor) }))
  const compare = (a: number, b: number) => (a === b ? 0 : a < b ? -1 : 1)
  keyed.sort((a, b) => compare(a.key[0], b.key[0]) || compare(a.key[1], b.key[1]))
  return keyed.map(({ tensor }) => tensor)
}
