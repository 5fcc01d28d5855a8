import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { checkExperts, parseConfig, size, tokenCount, type Family } from '../family.js'
import { expertNames, experts } from '../feed-forward.js'

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
      feedForward: experts({
        routing: { experts: c.num_local_experts, active: c.num_experts_per_tok },
        hidden: c.hidden_size,
        inner: c.intermediate_size,
        activation: c.hidden_act,
        router: 'block_sparse_moe.gate',
        names: expertNames('block_sparse_moe.experts.', ['w1', 'w3', 'w2']),
      }),
    })
  },
}
