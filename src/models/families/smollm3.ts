import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { layerTypes, parseConfig, slidingBlocks, tokenCount, type Family } from '../family.js'

const schema = llamaConfig.extend({
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(true),
  use_sliding_window: z.boolean().default(false),
  sliding_window: tokenCount.nullish(),
  layer_types: layerTypes,
  /** 1 for a block with rotary positions, 0 for one without. */
  no_rope_layers: z.array(z.int()).nullish(),
  no_rope_layer_interval: z.int().min(1).default(4),
})

/** SmolLM3: LLaMA with some blocks that have no positions. */
export const smollm3: Family = {
  modelType: 'smollm3',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const rotates = (block: number) =>
      c.no_rope_layers ? c.no_rope_layers[block] !== 0 : (block + 1) % c.no_rope_layer_interval !== 0
    const slides = slidingBlocks(c, (block) => !rotates(block))
    return llamaArchitecture(c, weights, {
      bias: { qkv: c.attention_bias, output: c.attention_bias, mlp: c.mlp_bias },
      usualTheta: 2e6,
      rotates,
      window: (block) =>
        c.use_sliding_window && slides(block) ? (c.sliding_window ?? undefined) : undefined,
    })
  },
}
