import * as z from 'zod'
import {
  activation,
  blockCount,
  checkHeads,
  headWeight,
  layerNorms,
  parseConfig,
  size,
  type Family,
} from '../family.js'
import { rotaryConfig, rotaryDimensions, rotaryPositions } from '../rotary.js'

const schema = rotaryConfig.extend({
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: blockCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  hidden_act: activation.default('gelu_tanh'),
  layer_norm_eps: z.number().positive().default(1e-5),
  qk_layernorm: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(false),
})

/** Phi-1, 1.5 and 2: attention and MLP side by side on one norm, rotary positions of a part of each head. */
export const phi: Family = {
  modelType: 'phi',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const hidden = c.hidden_size
    const inner = c.intermediate_size
    const heads = c.num_attention_heads
    const kvHeads = c.num_key_value_heads ?? heads
    checkHeads(hidden, heads, kvHeads)
    const headDim = hidden / heads
    const prefix = weights.findPrefix(['model.', ''], 'embed_tokens.weight')
    const embedding = `${prefix}embed_tokens.weight`

    return {
      hiddenSize: hidden,
      widestActivation: Math.max(inner, hidden),
      vocabularySize: c.vocab_size,
      contextLength: c.max_position_embeddings,
      blockCount: c.num_hidden_layers,
      rotary: rotaryPositions(c, rotaryDimensions(c, headDim, 0.5)),

      block: (index) => ({
        prefix: `${prefix}layers.${index}.`,
        linears: [
          { name: 'self_attn.q_proj', rows: hidden, columns: hidden, bias: true },
          { name: 'self_attn.k_proj', rows: kvHeads * headDim, columns: hidden, bias: true },
          { name: 'self_attn.v_proj', rows: kvHeads * headDim, columns: hidden, bias: true },
          { name: 'mlp.fc1', rows: inner, columns: hidden, bias: true },
          { name: 'self_attn.dense', rows: hidden, columns: hidden, bias: true },
          { name: 'mlp.fc2', rows: hidden, columns: inner, bias: true },
        ],
        parameters: [
          ...layerNorms(hidden, 'input_layernorm'),
          ...(c.qk_layernorm ? layerNorms(headDim, 'self_attn.q_layernorm', 'self_attn.k_layernorm') : []),
        ],
      }),

      embed: (w, device, ids) => device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype),

      *forward(b, x) {
        const normed = b.layerNorm(x, 'input_layernorm', c.layer_norm_eps)
        const names = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'mlp.fc1']
        const [q, k, v, fc1] = yield* b.linears(normed, ...names)
        if (c.qk_layernorm) {
          b.layerNormHeads(q!, headDim, 'self_attn.q_layernorm', c.layer_norm_eps)
          b.layerNormHeads(k!, headDim, 'self_attn.k_layernorm', c.layer_norm_eps)
        }
        b.rotary(q!, headDim)
        b.rotary(k!, headDim)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads, headDim, scale: headDim ** -0.5 })
        const attention = yield* b.linear(attended, 'self_attn.dense')
        const mlp = yield* b.linear(b.activation(fc1!, c.hidden_act), 'mlp.fc2')
        return b.parallelResidual(x, attention, mlp)
      },

      final: { prefix, linears: [], parameters: layerNorms(hidden, 'final_layernorm') },

      finish: (b, x) => b.layerNorm(x, 'final_layernorm', c.layer_norm_eps),

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
      headBias: (w) => w.parameter('lm_head.bias', [c.vocab_size]),
    }
  },
}
