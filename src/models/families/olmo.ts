import * as z from 'zod'
import { llamaArchitecture, llamaConfig, type LlamaVariant } from './llama.js'
import { layerTypes, parseConfig, slidingBlocks, tokenCount, type Family } from '../family.js'
import { rotaryByType } from '../rotary.js'

const schema = llamaConfig.extend({
  rms_norm_eps: z.number().positive().default(1e-5),
  attention_bias: z.boolean().default(false),
})

/** What OLMo 2 and 3 have in common. */
function common(c: z.output<typeof schema>): LlamaVariant {
  return {
    bias: { qkv: c.attention_bias, output: c.attention_bias },
    norms: { afterAttention: 'post_attention_layernorm', afterMlp: 'post_feedforward_layernorm' },
    queryKeyNorms: { row: true },
  }
}

/** OLMo 2: LLaMA with norms behind attention and MLP instead of before them, and of all of a token's q and k. */
export const olmo2: Family = {
  modelType: 'olmo2',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, common(c))
  },
}

const schema3 = schema.extend({
  sliding_window: tokenCount.nullable().default(4096),
  layer_types: layerTypes,
})

/** OLMo 3: OLMo 2 with a window in three of four blocks. */
export const olmo3: Family = {
  modelType: 'olmo3',

  build(config, weights) {
    const c = parseConfig(schema3, config)
    const slides = slidingBlocks(c, (block) => (block + 1) % 4 !== 0)
    const theta = c.rope_theta ?? 5e5
    const headDim = c.head_dim ?? c.hidden_size / c.num_attention_heads
    const rotary = rotaryByType(c, headDim, { full_attention: theta, sliding_attention: theta })
    return llamaArchitecture(c, weights, {
      ...common(c),
      rotary: (block) => rotary[slides(block) ? 'sliding_attention' : 'full_attention'],
      window: (block) => (slides(block) ? (c.sliding_window ?? undefined) : undefined),
    })
  },
}
