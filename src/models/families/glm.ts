import * as z from 'zod'
import { llamaArchitecture, llamaConfig, mlpSizes, type LlamaVariant } from './llama.js'
import { parseConfig, size, type Family } from '../family.js'
import { fusedMlp } from '../feed-forward.js'

const schema = llamaConfig.extend({
  head_dim: size.default(128),
  num_key_value_heads: size.nullable().default(2),
  rms_norm_eps: z.number().positive().default(1.5625e-7),
  attention_bias: z.boolean().default(true),
})

function common(c: z.output<typeof schema>): LlamaVariant {
  return {
    bias: { qkv: c.attention_bias },
    interleaved: true,
    partialRotary: 0.5,
    feedForward: fusedMlp(mlpSizes(c)),
  }
}

/** GLM 4 of 2024: LLaMA with gate and up in one matrix, and rotary positions that turn neighbours in a part of each head. */
export const glm: Family = {
  modelType: 'glm',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, common(c))
  },
}

/** GLM 4 of 2025: GLM with norms on both sides of attention and MLP. */
export const glm4: Family = {
  modelType: 'glm4',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const norms = {
      beforeAttention: 'input_layernorm',
      afterAttention: 'post_self_attn_layernorm',
      beforeMlp: 'post_attention_layernorm',
      afterMlp: 'post_mlp_layernorm',
    }
    return llamaArchitecture(c, weights, { ...common(c), norms })
  },
}
