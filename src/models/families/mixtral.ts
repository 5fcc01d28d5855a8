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
      const scores = b.product(x, `${moe}.gate`)
      const loads = yield* b.route(scores, { experts: count, active: c.num_experts_per_tok })
      const sums = b.zeros(x.rows, hidden)
      for (const [e, { tokens, shares }] of loads.entries()) {
        // Experts without tokens take part, with inputs of no rows: every batch goes through the same groups.
        const inputs = b.rows(x, tokens)
        const [gate, up] = yield* b.pooledLinears(
          `${moe}.experts.w1/w3`,
          inputs,
          name(e, 'w1'),
          name(e, 'w3'),
        )
        const gated = b.gated(gate!, up!, c.hidden_act)
        const [output] = yield* b.pooledLinears(`${moe}.experts.w2`, gated, name(e, 'w2'))
        b.addRows(sums, output!, tokens, shares)
      }
      const { dtype } = x
      b.drop(x)
      return b.cast(sums, dtype)
    },
  }
}
