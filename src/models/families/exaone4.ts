import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { layerTypes, parseConfig, slidingBlocks, tokenCount, type Family } from '../family.js'

const schema = llamaConfig.extend({
  rms_norm_eps: z.number().positive().default(1e-5),
  sliding_window: tokenCount.nullable().default(4096),
  /** How many blocks there are from one without a window to the next; or a letter for each of them. */
  sliding_window_pattern: z
    .union([
      z.int().min(1),
      z
        .string()
        .min(1)
        .transform((letters) => letters.length),
    ])
    .nullish(),
  layer_types: layerTypes,
})

/** EXAONE 4: LLaMA with norms behind attention and MLP instead of before them, and positions in blocks with a window only. */
export const exaone4: Family = {
  modelType: 'exaone4',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const pattern = c.sliding_window_pattern ?? 4
    const slides = slidingBlocks(c, (block) => (block + 1) % pattern !== 0)
    return llamaArchitecture(c, weights, {
      norms: { afterAttention: 'post_attention_layernorm', afterMlp: 'post_feedforward_layernorm' },
      queryKeyNorms: {},
      rotates: (block) => c.sliding_window === null || slides(block),
      window: (block) => (slides(block) ? (c.sliding_window ?? undefined) : undefined),
    })
  },
}
