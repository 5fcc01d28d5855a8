import * as z from 'zod'
import {
  activation,
  blockCount,
  checkHeads,
  headWeight,
  layerNorms,
  parseConfig,
  renamed,
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
  hidden_act: activation.default('gelu'),
  layer_norm_eps: z.number().positive().default(1e-5),
  use_parallel_residual: z.boolean().default(true),
  attention_bias: z.boolean().default(true),
  tie_word_embeddings: z.boolean().default(false),
})

/** GPT-NeoX, Pythia and their kin: rotary positions of a part of each head, q, k and v of each head in one matrix. */
export const gptNeox: Family = {
  modelType: 'gpt_neox',

  build(config, weights) {
    const names = { rotary_emb_base: 'rope_theta', rotary_pct: 'partial_rotary_factor' }
    const c = parseConfig(schema, renamed(config, names))
    const hidden = c.hidden_size
    const inner = c.intermediate_size
    const heads = c.num_attention_heads
    checkHeads(hidden, heads, heads)
    const headDim = hidden / heads
    const prefix = weights.findPrefix(['gpt_neox.', ''], 'embed_in.weight')
    const embedding = `${prefix}embed_in.weight`
    const bias = c.attention_bias

    return {
      hiddenSize: hidden,
      widestActivation: Math.max(inner, 3 * hidden),
      vocabularySize: c.vocab_size,
      contextLength: c.max_position_embeddings,
      blockCount: c.num_hidden_layers,
      rotary: rotaryPositions(c, rotaryDimensions(c, headDim, 0.25)),

      block: (index) => ({
        prefix: `${prefix}layers.${index}.`,
        linears: [
          { name: 'attention.query_key_value', rows: 3 * hidden, columns: hidden, bias },
          { name: 'attention.dense', rows: hidden, columns: hidden, bias },
          { name: 'mlp.dense_h_to_4h', rows: inner, columns: hidden, bias: true },
          { name: 'mlp.dense_4h_to_h', rows: hidden, columns: inner, bias: true },
        ],
        parameters: layerNorms(hidden, 'input_layernorm', 'post_attention_layernorm'),
      }),

      embed: (w, device, ids) => device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype),

      *forward(b, x) {
        const normed = b.layerNorm(x, 'input_layernorm', c.layer_norm_eps)
        const qkv = yield* b.linear(normed, 'attention.query_key_value')
        const [q, k, v] = b.splitGroups(qkv, heads, headDim, headDim, headDim)
        b.rotary(q!, headDim)
        b.rotary(k!, headDim)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads: heads, headDim, scale: headDim ** -0.5 })
        const attention = yield* b.linear(attended, 'attention.dense')
        // The MLP sees the attention's input when they are parallel, else its result.
        const parallel = c.use_parallel_residual
        const stream = parallel ? x : b.residual(x, attention)
        const mlpInput = b.layerNorm(stream, 'post_attention_layernorm', c.layer_norm_eps)
        const innerOutput = b.activation(yield* b.linear(mlpInput, 'mlp.dense_h_to_4h'), c.hidden_act)
        const mlp = yield* b.linear(innerOutput, 'mlp.dense_4h_to_h')
        return parallel ? b.parallelResidual(x, attention, mlp) : b.residual(stream, mlp)
      },

      final: { prefix, linears: [], parameters: layerNorms(hidden, 'final_layer_norm') },

      finish: (b, x) => b.layerNorm(x, 'final_layer_norm', c.layer_norm_eps),

      head: (w) => {
        const name = headWeight(w, c.tie_word_embeddings, embedding, 'embed_out.weight')
        return w.stored(name, [c.vocab_size, hidden])
      },
    }
  },
}
