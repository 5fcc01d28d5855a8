import * as z from 'zod'
import { llamaArchitecture, llamaConfig, mlpSizes } from './llama.js'
import { activation, parseConfig, size, tokenCount, type Family } from '../family.js'
import { plainMlp } from '../feed-forward.js'

const schema = llamaConfig.extend({
  num_key_value_heads: size.nullable().default(2),
  hidden_act: activation.default('gelu_tanh'),
  norm_epsilon: z.number().positive().default(1e-5),
  sliding_window: tokenCount.nullish(),
  use_bias: z.boolean().default(true),
  tie_word_embeddings: z.boolean().default(true),
})

/** StarCoder2: LLaMA with layer norms, biases and an MLP without a gate. */
export const starcoder2: Family = {
  modelType: 'starcoder2',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, {
      bias: { qkv: c.use_bias, output: c.use_bias },
      norm: 'layer',
      epsilon: c.norm_epsilon,
      feedForward: plainMlp(mlpSizes(c, c.use_bias), 'mlp.c_fc', 'mlp.c_proj'),
      window: () => c.sliding_window ?? undefined,
    })
  },
}
