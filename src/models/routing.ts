import type { Tensor } from '../native/device.js'

/** How a router's scores, [tokens, experts], distribute tokens over experts. */
export interface Routing {
  /** The number of experts. */
  experts: number
  /** The number of experts of each token. */
  active: number
  /**
   * What the shares of a token's experts are of their scores. Default 'softmax of chosen': the softmax over the chosen ones' scores;
   * 'softmax': that over all. 'sigmoid': of each score by itself; 'normalized sigmoid': divided by the sum of the chosen ones'.
   */
  shares?: 'softmax of chosen' | 'softmax' | 'sigmoid' | 'normalized sigmoid'
  /** The shares are multiplied with it. Default 1. */
  scale?: number
  /** Experts in groups of neighbours: only those of the best `active` groups are chosen. A group is as good as its `best` best experts together. */
  groups?: { count: number; active: number; best: number } | undefined
  /**
   * Experts are chosen one after the other, each with its share of the softmax over those whose scores come near its own
   * (SparseMixer, arXiv 2310.00811): by less than twice this part of it.
   */
  jitter?: number
}

/** What one expert is to work on, on the device. */
export interface ExpertLoad {
  /** The tokens that the expert works on, ascending; int32 [tokens of the expert]. */
  tokens: Tensor
  /** The share of its output in each of theirs, positive; float32 [tokens of the expert]. */
  shares: Tensor
}

/** The same on the host. */
export interface HostLoad {
  tokens: Int32Array
  shares: Float32Array
}

/**
 * Which tokens go to which expert: each to the `active` experts with its highest scores, of equal ones the first. `scores` is
 * [tokens, experts]. With sigmoids `preferences`, [experts], are added to what the experts are chosen by, not to their shares.
 */
export function route(scores: Float32Array, routing: Routing, preferences?: Float32Array): HostLoad[] {
  const { experts, active, scale = 1 } = routing
  const loads = Array.from({ length: experts }, () => ({ tokens: [] as number[], shares: [] as number[] }))
  const chosen = new Int32Array(active)
  for (let t = 0; t * experts < scores.length; t++) {
    const row = scores.subarray(t * experts, (t + 1) * experts)
    choose(row, routing, preferences, chosen)
    const shares = sharesOf(row, routing, chosen)
    for (let i = 0; i < active; i++) {
      const load = loads[chosen[i]!]!
      load.tokens.push(t)
      load.shares.push(scale * shares[i]!)
    }
  }
  return loads.map(({ tokens, shares }) => ({
    tokens: Int32Array.from(tokens),
    shares: Float32Array.from(shares),
  }))
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))

/** Fills `chosen` with a token's experts, the best first. */
function choose(
  row: Float32Array,
  { shares, groups }: Routing,
  preferences: Float32Array | undefined,
  chosen: Int32Array,
): void {
  const isSigmoid = shares === 'sigmoid' || shares === 'normalized sigmoid'
  const values =
    isSigmoid && (preferences || groups) ? row.map((x, e) => sigmoid(x) + (preferences?.[e] ?? 0)) : row
  if (!groups) {
    highest(values, chosen)
    return
  }
  const size = row.length / groups.count
  const group = (i: number) => values.subarray(i * size, (i + 1) * size)
  const bestOf = Float64Array.from({ length: groups.count }, (_, i) => {
    const best = new Int32Array(Math.min(groups.best, size))
    highest(group(i), best)
    return best.reduce((sum, e) => sum + group(i)[e]!, 0)
  })
  const active = new Int32Array(groups.active)
  highest(bestOf, active)
  highest(
    values.map((value, e) => (active.includes(Math.floor(e / size)) ? value : -Infinity)),
    chosen,
  )
}

/** Fills `chosen` with the places of the highest values, the highest first, of equal ones the first. */
function highest(values: Float32Array | Float64Array, chosen: Int32Array): void {
  for (let e = 0; e < values.length; e++) {
    const found = Math.min(e, chosen.length)
    let place = found
    while (place > 0 && values[e]! > values[chosen[place - 1]!]!) place--
    if (place === chosen.length) continue
    chosen.copyWithin(place + 1, place, found)
    chosen[place] = e
  }
}

/** The shares of a token's chosen experts before they are scaled. */
function sharesOf(row: Float32Array, routing: Routing, chosen: Int32Array): Float64Array {
  const shares = Float64Array.from(chosen, (e) => row[e]!)
  if (routing.shares === 'sigmoid') return shares.map(sigmoid)
  if (routing.shares === 'normalized sigmoid') {
    const each = shares.map(sigmoid)
    const sum = each.reduce((a, b) => a + b, 0)
    return each.map((share) => share / sum)
  }
  if (routing.jitter !== undefined) {
    const { jitter } = routing
    return shares.map((_, i) => softmax(row, nearBest(row, jitter, chosen, i)).get(chosen[i]!)!)
  }
  const top = shares[0]!
  let sum = 0
  for (const score of routing.shares === 'softmax' ? row : shares) sum += Math.exp(score - top)
  return shares.map((score) => Math.exp(score - top) / sum)
}

/** The experts whose scores come near that of a token's i-th one, without those before it. */
function nearBest(row: Float32Array, jitter: number, chosen: Int32Array, i: number): number[] {
  const best = row[chosen[i]!]!
  const before = chosen.subarray(0, i)
  return Array.from(row.keys()).filter(
    (e) => !before.includes(e) && (best - row[e]!) / Math.max(Math.abs(row[e]!), best) <= 2 * jitter,
  )
}

/** The softmax of the scores of some experts, by expert. */
function softmax(row: Float32Array, support: readonly number[]): Map<number, number> {
  const top = support.reduce((most, e) => Math.max(most, row[e]!), -Infinity)
  const powers = support.map((e) => Math.exp(row[e]! - top))
  const sum = powers.reduce((a, b) => a + b, 0)
  return new Map(support.map((e, i) => [e, powers[i]! / sum]))
}

/** The gradient of the scores, [tokens, experts], from that of each load's shares. */
export function routeGradient(
  scores: Float32Array,
  routing: Routing,
  loads: readonly HostLoad[],
  dshares: readonly Float32Array[],
): Float32Array {
  const { experts, scale = 1 } = routing
  const dscores = new Float32Array(scores.length)
  const chosenOf: { expert: number; share: number; dshare: number }[][] = []
  loads.forEach((load, expert) => {
    load.tokens.forEach((token, i) => {
      const one = { expert, share: load.shares[i]! / scale, dshare: scale * (dshares[expert]?.[i] ?? 0) }
      ;(chosenOf[token] ??= []).push(one)
    })
  })
  chosenOf.forEach((each, token) => {
    const row = scores.subarray(token * experts, (token + 1) * experts)
    const drow = dscores.subarray(token * experts, (token + 1) * experts)
    const mean = each.reduce((sum, { share, dshare }) => sum + share * dshare, 0)
    if (routing.shares === 'sigmoid' || routing.shares === 'normalized sigmoid') {
      // A share is a sigmoid, or one divided by the sum of those of the token's experts.
      const normalized = routing.shares === 'normalized sigmoid'
      for (const { expert, share, dshare } of each) {
        const value = sigmoid(row[expert]!)
        drow[expert] = normalized ? share * (1 - value) * (dshare - mean) : dshare * value * (1 - value)
      }
      return
    }
    const { jitter } = routing
    if (jitter === undefined) {
      if (routing.shares === 'softmax') {
        for (const [e, share] of softmax(row, [...row.keys()])) drow[e] = -share * mean
      } else {
        for (const { expert, share } of each) drow[expert] = -share * mean
      }
      for (const { expert, share, dshare } of each) drow[expert]! += share * dshare
      return
    }
    const order = [...each].sort((a, b) => row[b.expert]! - row[a.expert]! || a.expert - b.expert)
    const chosen = Int32Array.from(order, ({ expert }) => expert)
    order.forEach(({ expert, share, dshare }, i) => {
      for (const [e, part] of softmax(row, nearBest(row, jitter, chosen, i))) {
        drow[e]! += dshare * share * ((e === expert ? 1 : 0) - part)
      }
    })
  })
  return dscores
}
