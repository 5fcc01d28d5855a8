import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { checkLayerTypes, parseConfig, size, tokenCount, type Family } from '../family.js'

const schema = llamaConfig.extend({
  use_sliding_window: z.boolean().default(false),
  sliding_window: tokenCount.nullable().default(4096),
  max_window_layers: z.int().min(0).default(28),
  layer_types: z.array(z.enum(['full_attention', 'sliding_attention'])).nullish(),
})

/** The window of a block: some, or those from max_window_layers on, have one when windows are used at all. */
function window(c: z.output<typeof schema>) {
  return (block: number) => {
    if (!c.use_sliding_window || c.sliding_window === null) return undefined
    const sliding = c.layer_types
      ? c.layer_types[block] === 'sliding_attention'
      : block >= c.max_window_layers
    return sliding ? c.sliding_window : undefined
  }
}

/** Qwen2 and Qwen2.5: LLaMA with biases for q, k and v. */
export const qwen2: Family = {
  modelType: 'qwen2',

  build(config, weights) {
    const c = parseConfig(schema, config)
    checkLayerTypes(c.layer_types, c.num_hidden_layers)
    return llamaArchitecture(c, weights, { bias: { qkv: true }, window: window(c) })
  },
}

const schema3 = schema.extend({
  head_dim: size.default(128),
  attention_bias: z.boolean().default(false),
})

/** Qwen3: LLaMA with norms of each head's q and k. */
export const qwen3: Family = {
  modelType: 'qwen3',

  build(config, weights) {
    const c = parseConfig(schema3, config)
    checkLayerTypes(c.layer_types, c.num_hidden_layers)
    const bias = { qkv: c.attention_bias, output: c.attention_bias }
    return llamaArchitecture(c, weights, { bias, headNorms: true, window: window(c) })
  },
}
