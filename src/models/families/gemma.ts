import * as z from 'zod'
import { llamaArchitecture, llamaConfig, type SublayerNorms } from './llama.js'
import {
  activation,
  checkSupported,
  layerTypes,
  parseConfig,
  renamed,
  size,
  slidingBlocks,
  tokenCount,
  type Family,
} from '../family.js'
import { rotaryByType } from '../rotary.js'

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

/** Norms on both sides of attention and MLP. */
const norms: SublayerNorms = {
  beforeAttention: 'input_layernorm',
  afterAttention: 'post_attention_layernorm',
  beforeMlp: 'pre_feedforward_layernorm',
  afterMlp: 'post_feedforward_layernorm',
}

const schema2 = schema.extend({
  hidden_activation: activation.default('gelu_tanh'),
  query_pre_attn_scalar: z.number().positive().default(256),
  sliding_window: tokenCount.nullable().default(4096),
  layer_types: layerTypes,
  attn_logit_softcapping: z.number().positive().nullable().default(50),
  final_logit_softcapping: z.number().positive().nullable().default(30),
})

/** Gemma 2: Gemma with norms on both sides of attention and MLP, soft caps, and a window in every other block. */
export const gemma2: Family = {
  modelType: 'gemma2',

  build(config, weights) {
    const c = parseConfig(schema2, config)
    const slides = slidingBlocks(c, (block) => block % 2 === 0)
    return llamaArchitecture({ ...c, hidden_act: c.hidden_activation }, weights, {
      ...common(c),
      norms,
      attentionScale: c.query_pre_attn_scalar ** -0.5,
      attentionSoftcap: c.attn_logit_softcapping ?? undefined,
      logitSoftcap: c.final_logit_softcapping ?? undefined,
      window: (block) => (slides(block) ? (c.sliding_window ?? undefined) : undefined),
    })
  },
}

const schema3 = schema2.extend({
  attn_logit_softcapping: z.number().positive().nullish(),
  final_logit_softcapping: z.number().positive().nullish(),
  rope_local_base_freq: z.number().positive().default(10000),
  sliding_window_pattern: z.int().min(1).default(6),
})

/** Gemma 3: Gemma 2 with norms of each head's q and k instead of soft caps, and rotary positions of its own for blocks with a window. */
export const gemma3Text: Family = {
  modelType: 'gemma3_text',

  build(config, weights) {
    const c = parseConfig(schema3, renamed(config, { _sliding_window_pattern: 'sliding_window_pattern' }))
    const slides = slidingBlocks(c, (block) => (block + 1) % c.sliding_window_pattern !== 0)
    const rotary = rotaryByType(c, c.head_dim, {
      full_attention: c.rope_theta ?? 1e6,
      sliding_attention: c.rope_local_base_freq,
    })
    return llamaArchitecture({ ...c, hidden_act: c.hidden_activation }, weights, {
      ...common(c),
      norms,
      queryKeyNorms: {},
      rotary: (block) => rotary[slides(block) ? 'sliding_attention' : 'full_attention'],
      attentionScale: c.query_pre_attn_scalar ** -0.5,
      attentionSoftcap: c.attn_logit_softcapping ?? undefined,
      logitSoftcap: c.final_logit_softcapping ?? undefined,
      window: (block) => (slides(block) ? (c.sliding_window ?? undefined) : undefined),
    })
  },
}
