import { squareSums } from '../statistic.js'
import type { Method } from './method.js'

/** Wanda (Sun et al. 2023, arXiv 2306.11695): of each row the weights with the smallest |w| · ‖x‖ go. */
export const wanda = {
  name: 'wanda',
  statistic: squareSums,
  rounds: false,
  rowsApart: () => true,
  options: {},

  prepare: (device, _, squares) => ({
    prune(weight, { given, ...choice }) {
      device.checkFinite(weight, 'the weight')
      device.checkFinite(squares!, 'the sum of squares of the inputs')
      const scores = given ? undefined : device.scores(weight, squares!)
      const mask = given ?? device.selectMask(scores!, choice, { byRow: true })
      scores?.dispose()
      device.applyMask(weight, mask)
      return { mask }
    },
  }),
} satisfies Method
