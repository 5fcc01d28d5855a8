import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { parseConfig, size, type Family } from '../family.js'

const schema = llamaConfig.extend({
  head_dim: size.default(128),
  attention_bias: z.boolean().default(true),
  attention_out_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
})

/** Seed-OSS: LLaMA with biases for q, k and v. */
export const seedOss: Family = {
  modelType: 'seed_oss',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const bias = { qkv: c.attention_bias, output: c.attention_out_bias, mlp: c.mlp_bias }
    return llamaArchitecture(c, weights, { bias })
  },
}
