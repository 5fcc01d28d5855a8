import type { Method } from './method.js'

/** Magnitude pruning: the smallest weights of the whole matrix go. Equal ones go together, as in the SparseGPT reference. */
export const magnitude = {
  name: 'magnitude',
  statistic: undefined,
  rounds: false,
  rowsApart: ({ given, pattern }) => (given ?? pattern) !== undefined,
  options: {},

  prepare: (device) => ({
    prune(weight, { given, ...choice }) {
      device.checkFinite(weight, 'the weight')
      const mask = given ?? device.selectMask(weight, choice, { inclusive: true })
      device.applyMask(weight, mask)
      return { mask }
    },
  }),
} satisfies Method
