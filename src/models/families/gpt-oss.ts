import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import {
  checkExperts,
  checkSupported,
  layerTypes,
  parseConfig,
  size,
  slidingBlocks,
  tokenCount,
  type Family,
} from '../family.js'
import { experts } from '../feed-forward.js'

/** The rotary positions of a config that does not say. */
const yarn = {
  rope_type: 'yarn',
  factor: 32,
  beta_fast: 32,
  beta_slow: 1,
  truncate: false,
  original_max_position_embeddings: 4096,
}

const schema = llamaConfig.extend({
  head_dim: size.default(64),
  num_key_value_heads: size.nullable().default(8),
  rms_norm_eps: z.number().positive().default(1e-5),
  attention_bias: z.boolean().default(true),
  sliding_window: tokenCount.nullable().default(128),
  layer_types: layerTypes,
  num_local_experts: size.default(128),
  num_experts_per_tok: size.default(4),
  swiglu_alpha: z.number().default(1.702),
  swiglu_limit: z.number().default(7),
})

/** gpt-oss: LLaMA with attention sinks, a window in every other block, and experts with biases, whose matrices are in one tensor for all. */
export const gptOss: Family = {
  modelType: 'gpt_oss',

  build(config, weights) {
    const c = parseConfig(schema, config)
    checkExperts(c.num_hidden_layers, c.num_local_experts, c.num_experts_per_tok)
    checkSupported(c.swiglu_alpha === 1.702, 'swiglu_alpha', c.swiglu_alpha, 'it must be 1.702')
    checkSupported(c.swiglu_limit === 7, 'swiglu_limit', c.swiglu_limit, 'it must be 7')
    const slides = slidingBlocks(c, (block) => block % 2 === 0)
    const rope_parameters = c.rope_parameters ?? c.rope_scaling ?? yarn
    return llamaArchitecture({ ...c, rope_parameters }, weights, {
      bias: { qkv: c.attention_bias, output: c.attention_bias },
      sinks: true,
      usualTheta: 150000,
      window: (block) => (slides(block) ? (c.sliding_window ?? undefined) : undefined),
      feedForward: experts({
        routing: { experts: c.num_local_experts, active: c.num_experts_per_tok },
        hidden: c.hidden_size,
        inner: c.intermediate_size,
        activation: 'clamped_swish',
        router: 'mlp.router',
        routerBias: true,
        names: (expert) => ({
          first: [`mlp.experts.gate_up_proj.${expert}`],
          down: `mlp.experts.down_proj.${expert}`,
        }),
        gateUp: 'by turns',
        stored: { bias: true, layout: 'in-out' },
        gate: (b, gate, up) => b.gated(gate, b.activation(up, 'clamped_linear'), 'clamped_swish'),
      }),
    })
  },
}
