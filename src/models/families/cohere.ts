import * as z from 'zod'
import { llamaArchitecture, llamaConfig, type LlamaVariant } from './llama.js'
import { layerTypes, parseConfig, slidingBlocks, tokenCount, type Family } from '../family.js'

const schema = llamaConfig.extend({
  attention_bias: z.boolean().default(false),
  layer_norm_eps: z.number().positive().default(1e-5),
  logit_scale: z.number().positive().default(0.0625),
  tie_word_embeddings: z.boolean().default(true),
})

/** What Command R and R7B have in common. */
function common(c: z.output<typeof schema>): LlamaVariant {
  return {
    bias: { qkv: c.attention_bias, output: c.attention_bias },
    norm: 'layer without bias',
    epsilon: c.layer_norm_eps,
    parallel: true,
    interleaved: true,
    logitScale: c.logit_scale,
  }
}

/** Command R: attention and MLP side by side on one norm; rotary positions turn neighbouring dimensions. */
export const cohere: Family = {
  modelType: 'cohere',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, { ...common(c), usualTheta: 5e5 })
  },
}

const schema2 = schema.extend({
  sliding_window: tokenCount.nullable().default(4096),
  sliding_window_pattern: z.int().min(1).default(4),
  layer_types: layerTypes,
})

/** Command R7B and A: three of four blocks have a window and rotary positions, the others neither. */
export const cohere2: Family = {
  modelType: 'cohere2',

  build(config, weights) {
    const c = parseConfig(schema2, config)
    const slides = slidingBlocks(c, (block) => (block + 1) % c.sliding_window_pattern !== 0)
    return llamaArchitecture({ ...c, head_dim: undefined }, weights, {
      ...common(c),
      rotates: (block) => slides(block) && c.sliding_window !== null,
      window: (block) => (slides(block) ? (c.sliding_window ?? undefined) : undefined),
    })
  },
}
