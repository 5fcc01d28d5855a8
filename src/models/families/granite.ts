import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import { checkExperts, parseConfig, size, type Family } from '../family.js'
import { experts } from '../feed-forward.js'

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

const moeSchema = schema.extend({
  num_local_experts: size.default(8),
  num_experts_per_tok: size.default(2),
})

/** Granite 3 with experts, whose matrices are in one tensor for all. */
export const granitemoe: Family = {
  modelType: 'granitemoe',

  build(config, weights) {
    const c = parseConfig(moeSchema, config)
    checkExperts(c.num_hidden_layers, c.num_local_experts, c.num_experts_per_tok)
    return llamaArchitecture(c, weights, {
      ...common(c),
      bias: { qkv: c.attention_bias, output: c.attention_bias },
      feedForward: experts({
        routing: { experts: c.num_local_experts, active: c.num_experts_per_tok },
        hidden: c.hidden_size,
        inner: c.intermediate_size,
        activation: c.hidden_act,
        router: 'block_sparse_moe.router.layer',
        names: (expert) => ({
          first: [`block_sparse_moe.input_linear.${expert}`],
          down: `block_sparse_moe.output_linear.${expert}`,
        }),
        gateUp: 'halves',
      }),
    })
  },
}
