/** A block whose share of zeros is to be found. */
export interface Share {
  /** The number of weights. */
  weights: number
  /** The least and the largest share that it may have. */
  bounds: readonly [least: number, largest: number]
}

/** How much a model suffers when a block alone is pruned to each of three shares, of which the second is the goal. */
export interface Damage {
  weights: number
  shares: readonly [number, number, number]
  damage: readonly [number, number, number]
}

/** The steps of a bisection that leave nothing of a float64 interval. */
const halvings = 100

/** The argument of a rising function where it reaches `goal`, between `low` and `high`, of which one is near enough if it does not. */
function bisect(rising: (x: number) => number, goal: number, low: number, high: number): number {
  for (let i = 0; i < halvings; i++) {
    const middle = (low + high) / 2
    if (rising(middle) < goal) low = middle
    else high = middle
  }
  return (low + high) / 2
}

const clamp = (x: number, [least, largest]: readonly [number, number]) =>
  Math.min(largest, Math.max(least, x))

/** The level at which the blocks' shares, each a rising function of it, have the mean `goal`; resolves ties by what is left. */
function meeting(
  blocks: readonly Share[],
  goal: number,
  shareAt: (block: number, level: number) => number,
  [low, high]: readonly [number, number],
): number[] {
  const total = blocks.reduce((sum, { weights }) => sum + weights, 0)
  const mean = (shares: readonly number[]) =>
    shares.reduce((sum, share, i) => sum + share * blocks[i]!.weights, 0) / total
  const at = (level: number) => blocks.map((_, i) => shareAt(i, level))
  const shares = at(bisect((level) => mean(at(level)), goal, low, high))
  // What rounding has left goes to whoever has room.
  for (const [i, { weights, bounds }] of blocks.entries()) {
    shares[i] = clamp(shares[i]! + ((goal - mean(shares)) * total) / weights, bounds)
  }
  return shares
}

/**
 * The shares of zeros of blocks by the shares of outliers among their scores, as OWL (Yin et al. 2024, arXiv 2310.05175) has them: the
 * more outliers, the fewer zeros, over a range of 2 · `lambda`. They are in goal ± lambda, and their mean, weighted by the numbers
 * of weights, is `goal`.
 */
export function outlierShares(
  blocks: readonly { weights: number; outliers: number }[],
  goal: number,
  lambda: number,
): number[] {
  const outliers = blocks.map((block) => block.outliers)
  const [least, largest] = [Math.min(...outliers), Math.max(...outliers)]
  const scale = largest > least ? (2 * lambda) / (largest - least) : 0
  const bounds = [Math.max(0, goal - lambda), Math.min((1 + goal) / 2, goal + lambda)] as const
  const bounded = blocks.map(({ weights }) => ({ weights, bounds }))
  const shareAt = (i: number, level: number) => clamp(level - scale * (outliers[i]! - least), bounds)
  return meeting(bounded, goal, shareAt, [-1, 2 + 2 * lambda])
}

/**
 * The shares that make the sum of the blocks' damages least while their mean, weighted by the numbers of weights, is `goal`: where
 * none is at a bound, a further zero costs the same in every block. Between the three measured shares the logarithm of the damage is a
 * parabola, or where that makes no rising convex curve a line.
 */
export function leastDamage(blocks: readonly Damage[], goal: number): number[] {
  const curves = blocks.map(({ shares, damage, weights }) => {
    const [low, middle, high] = shares
    const at = Math.max(damage[1], 1e-12)
    const [below, above] = [clamp(damage[0], [at / 1e3, at]), Math.max(damage[2], at)]
    const [left, right] = [Math.log(at / below) / (middle - low), Math.log(above / at) / (high - middle)]
    const bend = (right - left) / (high - low)
    const parabola = { rise: left + bend * (middle - low), bend }
    const line = { rise: Math.max(1e-6, Math.log(above / below) / (high - low)), bend: 0 }
    const isConvex = [low - middle, high - middle].every((t) => {
      const rise = parabola.rise + 2 * bend * t
      return rise > 0 && rise ** 2 + 2 * bend >= 0
    })
    const { rise, bend: curvature } = isConvex ? parabola : line
    /** The logarithm of the damage of one more zero. */
    const slope = (share: number) => {
      const t = share - middle
      return Math.log(at / weights) + rise * t + curvature * t * t + Math.log(rise + 2 * curvature * t)
    }
    return { weights, bounds: [low, high] as const, slope }
  })
  const slopes = curves.flatMap(({ slope, bounds }) => bounds.map(slope))
  const shareAt = (i: number, level: number) => {
    const { slope, bounds } = curves[i]!
    return bisect(slope, level, ...bounds)
  }
  return meeting(curves, goal, shareAt, [Math.min(...slopes), Math.max(...slopes)])
}
