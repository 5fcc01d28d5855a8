import { openCheckpoint, type Checkpoint } from '../files/checkpoint.js'
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

export interface Inspection {
  /** The share of zeros over all tensors of a float type. */
  sparsity: number
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
    const transposed = transposedWeights(weights, checkpoint)
    const tensors: TensorReport[] = []
    let zeros = 0
    let elements = 0
    for (const { name, shape, dtype } of checkpoint.tensors.values()) {
      const size = shape.reduce((a, b) => a * b, 1)
      const counts = ['F32', 'BF16', 'F16'].includes(dtype)
        ? await countZeros(device, weights.stored(name, shape), transposed.has(name))
        : undefined
      if (counts) {
        zeros += counts[0] ?? 0
        elements += size
      }
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
    return { sparsity: elements > 0 ? zeros / elements : 0, tensors }
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

/** The weights that the architecture, if it is known, stores as [in, out]. */
function transposedWeights(weights: Weights, checkpoint: Checkpoint): Set<string> {
  try {
    const architecture = familyOf(checkpoint.config).build(checkpoint.config, weights)
    const linears = Array.from({ length: architecture.blockCount }, (_, index) =>
      namedLinears(architecture.block(index)),
    )
    const transposed = linears.flat().filter(({ layout }) => layout === 'in-out')
    return new Set(transposed.map(({ name }) => `${name}.weight`))
  } catch {
    return new Set()
  }
}
