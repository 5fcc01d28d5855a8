import * as z from 'zod'
import { llamaArchitecture, llamaConfig, mlpSizes } from './llama.js'
import { activation, parseConfig, type Family } from '../family.js'
import { plainMlp } from '../feed-forward.js'

const schema = llamaConfig.extend({
  rms_norm_eps: z.number().positive().default(1e-5),
  hidden_act: activation.default('relu2'),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
})

/** Arcee's AFM: LLaMA with an MLP without a gate. */
export const arcee: Family = {
  modelType: 'arcee',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, {
      bias: { qkv: c.attention_bias, output: c.attention_bias },
      feedForward: plainMlp(mlpSizes(c, c.mlp_bias), 'mlp.up_proj', 'mlp.down_proj'),
    })
  },
}
