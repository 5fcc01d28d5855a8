import * as z from 'zod'
import { llamaArchitecture, llamaConfig, mlpSizes } from './llama.js'
import { activation, parseConfig, type Family } from '../family.js'
import { plainMlp } from '../feed-forward.js'

const schema = llamaConfig.extend({
  hidden_act: activation.default('relu2'),
  norm_eps: z.number().positive().default(1e-5),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
})

/** Nemotron and Minitron: LLaMA with layer norms whose weights are stored minus 1, and an MLP without a gate. */
export const nemotron: Family = {
  modelType: 'nemotron',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, {
      bias: { qkv: c.attention_bias, output: c.attention_bias },
      norm: 'layer',
      normOffset: 1,
      epsilon: c.norm_eps,
      partialRotary: 0.5,
      feedForward: plainMlp(mlpSizes(c, c.mlp_bias), 'mlp.up_proj', 'mlp.down_proj'),
    })
  },
}
