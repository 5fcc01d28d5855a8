import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { checkSupported, parseConfig, renamed, type Family } from '../family.js'

const schema = llamaConfig.extend({
  rms_norm_eps: z.number().positive().default(1e-5),
  attention_bias: z.boolean().default(false),
  use_qk_norm: z.boolean().default(true),
})

/** Hunyuan's dense models: LLaMA with norms of each head's q and k behind the rotation. */
export const hunyuanV1Dense: Family = {
  modelType: 'hunyuan_v1_dense',

  build(config, weights) {
    const c = parseConfig(schema, renamed(config, { attention_head_dim: 'head_dim' }))
    checkSupported(c.use_qk_norm, 'use_qk_norm', c.use_qk_norm, 'only models with norms of q and k are')
    const headDim = c.head_dim ?? c.hidden_size / c.num_attention_heads
    const { alpha, ...given } = c.rope_parameters ?? c.rope_scaling ?? {}
    const scaling = given.rope_type ?? given.type
    // A fixed "alpha" stretches theta, whatever the length.
    const theta = given.rope_theta ?? c.rope_theta ?? 10000
    const stretched =
      scaling === 'dynamic' && typeof alpha === 'number' && alpha > 0
        ? { rope_type: 'default', rope_theta: theta * alpha ** (headDim / (headDim - 2)) }
        : given
    return llamaArchitecture({ ...c, rope_parameters: stretched }, weights, {
      bias: { qkv: c.attention_bias, output: c.attention_bias },
      queryKeyNorms: { names: ['query_layernorm', 'key_layernorm'], afterRotary: true },
    })
  },
}
