import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { checkExperts, checkSupported, parseConfig, size, tokenCount, type Family } from '../family.js'
import { expertNames, experts } from '../feed-forward.js'

const schema = llamaConfig.extend({
  num_key_value_heads: size.nullable().default(8),
  rms_norm_eps: z.number().positive().default(1e-5),
  sliding_window: tokenCount.nullish(),
  attention_bias: z.boolean().default(false),
  lm_head_bias: z.boolean().default(false),
  num_local_experts: size.default(16),
  num_experts_per_tok: size.default(2),
  router_jitter_noise: z.number().min(0).default(0.01),
})

/** Phi-3.5-MoE: LLaMA with layer norms and experts that SparseMixer chooses. */
export const phimoe: Family = {
  modelType: 'phimoe',

  build(config, weights) {
    const c = parseConfig(schema, config)
    checkExperts(c.num_hidden_layers, c.num_local_experts, c.num_experts_per_tok)
    checkSupported(c.num_experts_per_tok === 2, 'num_experts_per_tok', c.num_experts_per_tok, 'it must be 2')
    // The factor of cos and sin has an entry of its own, for short and for long sequences.
    const { short_mscale: short, long_mscale: long, ...rope } = c.rope_parameters ?? c.rope_scaling ?? {}
    checkSupported(short === long, 'long_mscale', long, 'it must be the same as short_mscale')
    const rope_parameters = short === undefined ? rope : { ...rope, attention_factor: short }
    return llamaArchitecture({ ...c, rope_parameters }, weights, {
      bias: { qkv: c.attention_bias, output: c.attention_bias },
      norm: 'layer',
      headBias: c.lm_head_bias,
      usualTheta: 1e6,
      window: () => c.sliding_window ?? undefined,
      feedForward: experts({
        routing: { experts: c.num_local_experts, active: 2, jitter: c.router_jitter_noise },
        hidden: c.hidden_size,
        inner: c.intermediate_size,
        activation: c.hidden_act,
        router: 'block_sparse_moe.gate',
        names: expertNames('block_sparse_moe.experts.', ['w1', 'w3', 'w2']),
      }),
    })
  },
}
