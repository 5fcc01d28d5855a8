import type { PythonRandom } from '../text/python-random.js'

/**
 * The learning rate of a step, counted from 0, of `total`: a twentieth of them, at least 10 but no more than a quarter of all, warms up
 * to `peak`, the rest falls to zero. Adam's first steps go by means of few gradients and must be short.
 */
export function learningRate(step: number, total: number, peak: number): number {
  const warmUp = Math.max(1, Math.ceil(total / 20), Math.min(10, Math.floor(total / 4)))
  return peak * Math.min((step + 1) / warmUp, (total - step) / (total - warmUp + 1), 1)
}

/** The items in an order that `random` draws (Fisher and Yates). */
export function shuffled<T>(items: readonly T[], random: PythonRandom): T[] {
  const result = [...items]
  for (let i = result.length - 1; i > 0; i--) {
    const j = random.randint(0, i)
    ;[result[i], result[j]] = [result[j]!, result[i]!]
  }
  return result
}

/** How many of some windows are held out: at least one, and not all. */
export function heldOutCount(windows: number, share: number): number {
  return Math.min(Math.max(1, Math.round(windows * share)), windows - 1)
}
