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
  for (let t = 0; t * experts < scores.length; t++) {
    const row = scores.subarray(t * experts, (t + 1) * experts)
    const chosen = [...row.keys()].sort((a, b) => row[b]! - row[a]! || a - b).slice(0, active)
    const powers = chosen.map((e) => Math.exp(row[e]! - row[chosen[0]!]!))
    const sum = powers.reduce((a, b) => a + b, 0)
    chosen.forEach((e, i) => {
      loads[e]!.tokens.push(t)
      loads[e]!.shares.push(powers[i]! / sum)
    })
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
