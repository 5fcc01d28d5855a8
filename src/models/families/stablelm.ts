import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { parseConfig, renamed, type Family } from '../family.js'

const schema = llamaConfig.extend({
  layer_norm_eps: z.number().positive().default(1e-5),
  use_qkv_bias: z.boolean().default(false),
  use_parallel_residual: z.boolean().default(false),
})

/** StableLM: LLaMA with layer norms, and rotary positions of a part of each head. */
export const stablelm: Family = {
  modelType: 'stablelm',

  build(config, weights) {
    const c = parseConfig(schema, renamed(config, { rope_pct: 'partial_rotary_factor' }))
    return llamaArchitecture(c, weights, {
      bias: { qkv: c.use_qkv_bias },
      norm: 'layer',
      epsilon: c.layer_norm_eps,
      partialRotary: 0.25,
      parallel: c.use_parallel_residual,
    })
  },
}
