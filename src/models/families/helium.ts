import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { parseConfig, size, type Family } from '../family.js'

const schema = llamaConfig.extend({
  head_dim: size.default(128),
  rms_norm_eps: z.number().positive().default(1e-8),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
})

/** Helium: LLaMA whose rotary positions turn neighbouring dimensions. */
export const helium: Family = {
  modelType: 'helium',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const bias = { qkv: c.attention_bias, mlp: c.mlp_bias }
    return llamaArchitecture(c, weights, { bias, interleaved: true, usualTheta: 1e5 })
  },
}
