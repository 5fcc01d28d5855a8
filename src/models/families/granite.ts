import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { parseConfig, type Family } from '../family.js'

const factor = z.number().positive().default(1)

const schema = llamaConfig.extend({
  attention_bias: z.boolean().default(false),
  embedding_multiplier: factor,
  attention_multiplier: factor,
  residual_multiplier: factor,
  logits_scaling: factor,
})

/** What Granite and its models with experts have in common. */
function common(c: z.output<typeof schema>) {
  return {
    embeddingScale: c.embedding_multiplier,
    attentionScale: c.attention_multiplier,
    residualScale: c.residual_multiplier,
    logitScale: 1 / c.logits_scaling,
  }
}

const denseSchema = schema.extend({ mlp_bias: z.boolean().default(false) })

/** Granite 3: LLaMA with factors of the embeddings, the scores, the sublayers' outputs and the logits. */
export const granite: Family = {
  modelType: 'granite',

  build(config, weights) {
    const c = parseConfig(denseSchema, config)
    const bias = { qkv: c.attention_bias, output: c.attention_bias, mlp: c.mlp_bias }
    return llamaArchitecture(c, weights, { ...common(c), bias })
  },
}
