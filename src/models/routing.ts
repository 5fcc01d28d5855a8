import type { Tensor } from '../native/device.js'

/** How a router's scores, [tokens, experts], distribute tokens over experts. */
export interface Routing {
  /** The number of experts. */
  experts: number
  /** The number of experts of each token. */
  active: number
}

/** What one expert is to work on, on the device. */
export interface ExpertLoad {
  /** The tokens that the expert works on, ascending; int32 [tokens of the expert]. */
  tokens: Tensor
  /** The share of its output in each of theirs, in (0, 1]; float32 [tokens of the expert]. */
  shares: Tensor
}

/** The same on the host. */
export interface HostLoad {
  tokens: Int32Array
  shares: Float32Array
}

/**
 * Which tokens go to which expert: each to the `active` experts with its highest scores, of equal ones the first, in shares of
 * the softmax over those. `scores` is [tokens, experts].
 */
export function route(scores: Float32Array, { experts, active }: Routing): HostLoad[] {
  const loads = Array.from({ length: experts }, () => ({ tokens: [] as number[], shares: [] as number[] }))
  const chosen = new Int32Array(active)
  const powers = new Float64Array(active)
  for (let t = 0; t * experts < scores.length; t++) {
    const row = t * experts
    const score = (i: number) => scores[row + chosen[i]!]!
    for (let e = 0; e < experts; e++) {
      const found = Math.min(e, active)
      let place = found
      while (place > 0 && scores[row + e]! > score(place - 1)) place--
      if (place === active) continue
      chosen.copyWithin(place + 1, place, found)
      chosen[place] = e
    }
    let sum = 0
    for (let i = 0; i < active; i++) sum += powers[i] = Math.exp(score(i) - score(0))
    for (let i = 0; i < active; i++) {
      const load = loads[chosen[i]!]!
      load.tokens.push(t)
      load.shares.push(powers[i]! / sum)
    }
  }
  return loads.map(({ tokens, shares }) => ({
    tokens: Int32Array.from(tokens),
    shares: Float32Array.from(shares),
  }))
}

/** The gradient of the scores, [tokens, experts], from that of each load's shares: the softmax's over the experts that were chosen. */
export function routeGradient(
  loads: readonly HostLoad[],
  dshares: readonly Float32Array[],
  tokens: number,
): Float32Array {
  const means = new Float64Array(tokens)
  const each = (visit: (token: number, expert: number, share: number, dshare: number) => void) => {
    loads.forEach((load, expert) => {
      load.tokens.forEach((token, i) => {
        visit(token, expert, load.shares[i] ?? 0, dshares[expert]?.[i] ?? 0)
      })
    })
  }
  each((token, _, share, dshare) => {
    means[token]! += share * dshare
  })
  const dscores = new Float32Array(tokens * loads.length)
  each((token, expert, share, dshare) => {
    dscores[token * loads.length + expert] = share * (dshare - means[token]!)
  })
  return dscores
}
