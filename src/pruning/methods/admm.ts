import type { Device, Tensor } from '../../native/device.js'
import { LeastSquares } from '../least-squares.js'
import { gramMatrix } from '../statistic.js'
import { dampening } from './dampening.js'
import type { Method, Selection } from './method.js'
import { readReport } from './sparsegpt.js'

const options = {
  /** What is added to the diagonal of the Hessian, as a share of each entry (admm). Default 0.01, with a dense target 0.1. */
  dampening,
}

/**
 * The penalty ρ on the distance between the weights that fit best and those that are sparse, in units of H's diagonal. Larger ones
 * settle sooner, at a worse support; below 0.6 the support does not settle.
 */
const penalty = 0.7
const iterations = 30

/**
 * ADMM as in ALPS (Meng et al. 2024, arXiv 2406.07831): weights that fit the outputs and weights that are sparse approach each other,
 * which chooses the support; the kept weights are fitted afterwards. The penalty is constant, so one factorisation serves all
 * iterations and all layers that share an input.
 */
export const admm: Method<typeof options> = {
  name: 'admm',
  statistic: gramMatrix,
  rounds: false,
  refits: true,
  rowsApart: () => false,
  options,

  prepare(device, { dampening = 0.01 }, gram) {
    const squares = new LeastSquares(device, gram!, dampening + penalty)
    return {
      prune(weight, selection) {
        device.checkFinite(weight, 'the weight')
        if (selection.given) {
          device.applyMask(weight, selection.given)
        } else {
          chooseSupport(device, squares, weight, selection)
        }
        return { mask: device.markZeros(weight) }
      },
      async preparation() {
        const told = await readReport(device, squares.report)
        return { ...told, dampening: told.dampening - penalty }
      },
    }
  },
}

/** Leaves of `weight`, in place, what is in the support that the iterations end with. */
function chooseSupport(device: Device, squares: LeastSquares, weight: Tensor, selection: Selection): void {
  const copy = (x: Tensor) => device.cast(x, 'float32')
  const zeros = device.markZeros(weight)
  squares.enter(weight)
  // v = D + U with the best fit D and the scaled dual U: Z keeps of it what is largest, U becomes the rest.
  let v = copy(weight)
  for (let iteration = 0; ; iteration++) {
    device.applyMask(v, zeros)
    const mask = device.selectMask(v, selection)
    if (iteration === iterations) {
      device.applyMask(v, mask)
      device.cast(v, 'float32', weight)
      squares.leave(weight)
      return
    }
    const next = device.tidy(() => {
      const away = copy(v)
      device.applyMask(away, mask)
      device.scale(away, -1)
      device.add(v, away)
      // D = W + ρ (Z − U − W) (H + ρ)⁻¹, the best fit near Z − U.
      device.add(away, v)
      device.add(away, weight)
      const step = squares.solve(away)
      device.scale(step, -penalty)
      device.add(step, weight)
      device.add(step, v)
      return step
    })
    mask.dispose()
    v.dispose()
    v = next
  }
}
