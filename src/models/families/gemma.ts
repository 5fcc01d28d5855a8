import * as z from 'zod'
import { llamaArchitecture, llamaConfig } from './llama.js'
import {
  activation,
  checkLayerTypes,
  checkSupported,
  parseConfig,
  size,
  tokenCount,
  type Family,
} from '../family.js'

const schema = llamaConfig.extend({
  head_dim: size.default(256),
  hidden_act: activation.default('gelu_tanh'),
  hidden_activation: activation.nullish(),
  attention_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(true),
  use_bidirectional_attention: z.boolean().nullish(),
})

/** What Gemma and Gemma 2 have in common. */
function common(c: z.output<typeof schema>) {
  const causal = c.use_bidirectional_attention !== true
  checkSupported(
    causal,
    'use_bidirectional_attention',
    c.use_bidirectional_attention,
    'only causal models are',
  )
  return {
    bias: { qkv: c.attention_bias, output: c.attention_bias },
    normOffset: 1,
    embeddingScale: Math.sqrt(c.hidden_size),
  }
}

/** Gemma: LLaMA with norm weights stored minus 1, scaled embeddings and a GELU gate. */
export const gemma: Family = {
  modelType: 'gemma',

  build(config, weights) {
    const c = parseConfig(schema, config)
    // The first releases say "gelu" and mean its tanh approximation.
    const act = c.hidden_activation ?? (c.hidden_act === 'gelu' ? 'gelu_tanh' : c.hidden_act)
    return llamaArchitecture({ ...c, hidden_act: act }, weights, common(c))
  },
}

const schema2 = schema.extend({
  hidden_activation: activation.default('gelu_tanh'),
  query_pre_attn_scalar: z.number().positive().default(256),
  sliding_window: tokenCount.nullable().default(4096),
  layer_types: z.array(z.enum(['full_attention', 'sliding_attention'])).nullish(),
  attn_logit_softcapping: z.number().positive().nullable().default(50),
  final_logit_softcapping: z.number().positive().nullable().default(30),
})

/** Gemma 2: Gemma with norms on both sides of attention and MLP, soft caps, and a window in every other block. */
export const gemma2: Family = {
  modelType: 'gemma2',

  build(config, weights) {
    const c = parseConfig(schema2, config)
    checkLayerTypes(c.layer_types, c.num_hidden_layers)
    const sliding = (block: number) =>
      c.layer_types ? c.layer_types[block] === 'sliding_attention' : block % 2 === 0
    return llamaArchitecture({ ...c, hidden_act: c.hidden_activation }, weights, {
      ...common(c),
      outputNorms: true,
      attentionScale: c.query_pre_attn_scalar ** -0.5,
      attentionSoftcap: c.attn_logit_softcapping ?? undefined,
      logitSoftcap: c.final_logit_softcapping ?? undefined,
      window: (block) => (sliding(block) ? (c.sliding_window ?? undefined) : undefined),
    })
  },
}
