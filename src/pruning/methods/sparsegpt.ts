import * as z from 'zod'
import type { Device, Tensor } from '../../native/device.js'
import { gramMatrix } from '../statistic.js'
import { dampening } from './dampening.js'
import type { Method, Preparation } from './method.js'

const options = {
  /** The number of columns whose mask is chosen together (sparsegpt). Default 128. */
  blockSize: z
    .int()
    .min(1)
    .max(65536)
    .default(128)
    .describe('columns whose mask is chosen together (default: 128; sparsegpt)'),
  /** What is added to the diagonal of the Hessian, as a share of its mean (sparsegpt). Default 0.01. */
  dampening,
}

/** SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): the kept weights make up for the pruned ones. */
export const sparsegpt: Method<typeof options> = {
  name: 'sparsegpt',
  statistic: gramMatrix,
  rounds: true,
  rowsApart: ({ given, pattern }) => (given ?? pattern) !== undefined,
  options,

  prepare(device, o, hessian) {
    const { blockSize, dampening = 0.01, bits, groupSize, symmetric = false, clip = false } = o
    const { dead, report } = device.factorHessian(hessian!, dampening)
    const factor = { factor: hessian!, dead }
    return {
      prune: (weight, { stepType = 'float32', ...selection }) => {
        if (bits === undefined) return device.pruneSparsegpt(weight, factor, selection, { blockSize })
        const rounding = { bits, groupSize, symmetric, clip, stepType }
        const { steps, zeros, ...pruned } = device.pruneSparsegpt(weight, factor, selection, {
          blockSize,
          rounding,
        })
        return { ...pruned, grids: steps && zeros && { bits, steps, zeros } }
      },
      energy: (weight) => energyOf(device, weight, factor),
      preparation: () => readReport(device, report),
    }
  },
}

/** ½ tr(W H Wᵀ) without the inputs that are always zero, of which a factor has only that H is diagonal there. */
async function energyOf(
  device: Device,
  weight: Tensor,
  { factor, dead }: { factor: Tensor; dead: Tensor },
): Promise<number> {
  const squares = device.tidy(() => {
    const sums = device.zeros('float32', [weight.width])
    // As large as the mask that comes after it, which this makes room for.
    const rows = Math.ceil(weight.rows / 4)
    for (let first = 0; first < weight.rows; first += rows) {
      device.tidy(() => {
        const part = device.adopt(weight.rowRange(first, Math.min(rows, weight.rows - first)))
        device.accumulateSquares(sums, device.triangularProduct(part, factor), 0.5)
        return undefined
      })
    }
    return sums
  })
  const [sums, unused] = await Promise.all([device.readFloat32(squares), device.read(dead)])
  return sums.reduce((total, sum, column) => (unused[column] ? total : total + sum), 0)
}

/** Decodes the report of a factorisation, as factor_report in native/core/operations.h lays it out. */
export async function readReport(device: Device, report: Tensor): Promise<Preparation> {
  const [dampening = 0, retries = 0, deadColumns = 0] = await device.read(report)
  return { dampening, retries, deadColumns }
}
