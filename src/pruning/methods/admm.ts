import type { Device, Tensor } from '../../native/device.js'
import { LeastSquares } from '../least-squares.js'
import { gramMatrix } from '../statistic.js'
import type { Method, Selection } from './method.js'
import { readReport } from './sparsegpt.js'

const iterations = Number(process.env['ADMM_T'] ?? 20)
const penalty = Number(process.env['ADMM_RHO'] ?? 0.1)
const ramp = Number(process.env['ADMM_RAMP'] ?? 15)
const mode = process.env['ADMM_MODE'] ?? 'soft'
const lambda = Number(process.env['ADMM_LAMBDA'] ?? 0.01)

export const admm = {
  name: 'admm',
  statistic: gramMatrix,
  rounds: false,
  refits: true,
  options: {},

  prepare(device, _, gram) {
    const squares = new LeastSquares(device, gram!, lambda + penalty)
    return {
      prune: (weight, selection) => ({ mask: chooseSupport(device, squares, weight, selection) }),
      preparation: () => readReport(device, squares.report),
    }
  },
} satisfies Method

function chooseSupport(
  device: Device,
  squares: LeastSquares,
  weight: Tensor,
  { given, ...choice }: Selection,
): Tensor {
  device.checkFinite(weight, 'the weight')
  const zeros = device.markZeros(weight)
  squares.enter(weight)
  const minus = device.cast(weight, 'float32')
  device.scale(minus, -1)
  let v = device.cast(weight, 'float32')
  const copy = (x: Tensor) => device.cast(x, 'float32')
  for (let t = 0; ; t++) {
    const last = t === iterations
    const stage = Math.min(1, (t + 1) / ramp)
    device.applyMask(v, zeros)
    let share = choice
    if (mode === 'cubic' && choice.sparsity !== undefined && !last)
      share = { ...choice, sparsity: choice.sparsity * (1 - (1 - stage) ** 3) }
    const mask = given ?? device.selectMask(v, share)
    if (last) {
      device.applyMask(v, mask)
      device.cast(v, 'float32', weight)
      squares.leave(weight)
      return mask
    }
    const next = device.tidy(() => {
      const z = copy(v)
      device.applyMask(z, mask)
      if (mode === 'soft' && stage < 1) {
        // z + (1 - tau) (v - z)
        const part = copy(v)
        device.scale(part, 1 - stage)
        device.scale(z, stage)
        device.add(z, part)
      }
      const u = copy(z)
      device.scale(u, -1)
      device.add(u, v) // u = v - z
      device.scale(v, -1)
      const g = copy(z)
      device.scale(g, 2)
      device.add(g, v)
      device.add(g, minus)
      const d = squares.solve(g)
      device.scale(d, penalty)
      device.add(d, weight)
      device.add(d, u)
      return d
    })
    if (!given) mask.dispose()
    v.dispose()
    v = next
  }
}
