import { llamaArchitecture, llamaConfig, type FeedForward } from './llama.js'
import { checkExperts, parseConfig, size, tokenCount, type Family } from '../family.js'
import * as z from 'zod'

const schema = llamaConfig.extend({
  rms_norm_eps: z.number().positive().default(1e-5),
  num_key_value_heads: size.nullable().default(8),
  sliding_window: tokenCount.nullish(),
  num_local_experts: size.default(8),
  num_experts_per_tok: size.default(2),
})

/** Mixtral: LLaMA with several MLPs ("experts") per block, of which a router picks some for each token. */
export const mixtral: Family = {
  modelType: 'mixtral',

  build(config, weights) {
    const c = parseConfig(schema, config)
    checkExperts(c.num_hidden_layers, c.num_local_experts, c.num_experts_per_tok)
    return llamaArchitecture(c, weights, {
      window: () => c.sliding_window ?? undefined,
      usualTheta: 1e6,
      feedForward: experts(c),
    })
  },
}

/**
 * Each expert runs on the tokens that are routed to it, so it is calibrated on them, too. The router is a parameter, not a
 * linear layer: it is tiny, and pruning it would change which expert sees which token, for which no weight update makes up.
 */
function experts(c: z.output<typeof schema>): FeedForward {
  const { hidden_size: hidden, intermediate_size: inner, num_local_experts: count } = c
  const moe = 'block_sparse_moe'
  const name = (expert: number, matrix: 'w1' | 'w2' | 'w3') => `${moe}.experts.${expert}.${matrix}`
  return {
    linears: Array.from({ length: count }, (_, e) => [
      { name: name(e, 'w1'), rows: inner, columns: hidden, bias: false },
      { name: name(e, 'w3'), rows: inner, columns: hidden, bias: false },
      { name: name(e, 'w2'), rows: hidden, columns: inner, bias: false },
    ]).flat(),
    parameters: [{ name: `${moe}.gate.weight`, shape: [count, hidden] }],

    *forward(b, x) {
      const scores = yield* b.read(b.product(x, `${moe}.gate`))
      const sums = b.zeros(x.rows, hidden)
      for (const [e, { tokens, shares }] of route(scores, count, c.num_experts_per_tok).entries()) {
        // Experts without tokens take part, with inputs of no rows: every batch goes through the same groups.
        const ids = b.upload(tokens)
        const inputs = b.rows(x, ids)
        const [gate, up] = yield* b.pooledLinears(
          `${moe}.experts.w1/w3`,
          inputs,
          name(e, 'w1'),
          name(e, 'w3'),
        )
        const gated = b.gated(gate!, up!, c.hidden_act)
        const [output] = yield* b.pooledLinears(`${moe}.experts.w2`, gated, name(e, 'w2'))
        b.addRows(sums, output!, ids, b.upload(shares))
      }
      const { dtype } = x
      b.drop(x)
      return b.cast(sums, dtype)
    },
  }
}

export interface ExpertLoad {
  /** The tokens that the expert works on, ascending. */
  tokens: Int32Array
  /** The share of its output in each of theirs, in (0, 1]. */
  shares: Float32Array
}

/**
 * Which tokens go to which expert: each to the `active` experts with its highest scores, of equal ones the first, in shares of
 * the softmax over those. `scores` is [tokens, experts].
 */
export function route(scores: Float32Array, experts: number, active: number): ExpertLoad[] {
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
