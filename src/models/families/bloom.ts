import * as z from 'zod'
import type { Tensor } from '../../native/device.js'
import { alibiSlopes } from '../alibi.js'
import {
  blockCount,
  checkHeads,
  headWeight,
  layerNorms,
  outerLayerNorm,
  parseConfig,
  renamed,
  size,
  tokenCount,
  type Family,
} from '../family.js'

const schema = z.object({
  vocab_size: size,
  hidden_size: size,
  n_layer: blockCount,
  n_head: size,
  /** What it was trained with; ALiBi has no table that would end there. */
  seq_length: tokenCount.default(2048),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  apply_residual_connection_post_layernorm: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(true),
})

/** BLOOM: ALiBi positions, a norm after the embedding, q, k and v of each head in one matrix. */
export const bloom: Family = {
  modelType: 'bloom',

  build(config, weights) {
    const names = { n_embed: 'hidden_size', num_attention_heads: 'n_head', num_hidden_layers: 'n_layer' }
    const c = parseConfig(schema, renamed(config, names))
    const hidden = c.hidden_size
    const heads = c.n_head
    checkHeads(hidden, heads, heads)
    const headDim = hidden / heads
    const prefix = weights.findPrefix(['transformer.', ''], 'word_embeddings.weight')
    const embedding = `${prefix}word_embeddings.weight`
    const slopes = alibiSlopes(heads)

    return {
      hiddenSize: hidden,
      widestActivation: 4 * hidden,
      vocabularySize: c.vocab_size,
      contextLength: c.seq_length,
      blockCount: c.n_layer,

      block: (index) => ({
        prefix: `${prefix}h.${index}.`,
        linears: [
          { name: 'self_attention.query_key_value', rows: 3 * hidden, columns: hidden, bias: true },
          { name: 'self_attention.dense', rows: hidden, columns: hidden, bias: true },
          { name: 'mlp.dense_h_to_4h', rows: 4 * hidden, columns: hidden, bias: true },
          { name: 'mlp.dense_4h_to_h', rows: hidden, columns: 4 * hidden, bias: true },
        ],
        parameters: layerNorms(hidden, 'input_layernorm', 'post_attention_layernorm'),
      }),

      embed(w, device, ids) {
        const x = device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype)
        return outerLayerNorm(w, device, x, {
          name: `${prefix}word_embeddings_layernorm`,
          size: hidden,
          epsilon: c.layer_norm_epsilon,
        })
      },

      *forward(b, x) {
        // What the sublayer's output is added to: its input, before or after the norm.
        const residual = (stream: Tensor, normed: Tensor) =>
          c.apply_residual_connection_post_layernorm ? b.copy(normed) : stream
        const normed = b.layerNorm(x, 'input_layernorm', c.layer_norm_epsilon)
        const first = residual(x, normed)
        const qkv = yield* b.linear(normed, 'self_attention.query_key_value')
        const [q, k, v] = b.splitGroups(qkv, heads, headDim, headDim, headDim)
        const shape = { heads, kvHeads: heads, headDim, scale: headDim ** -0.5, slopes: b.upload(slopes) }
        const attended = b.attention(q!, k!, v!, shape)
        x = b.residual(first, yield* b.linear(attended, 'self_attention.dense'))
        const mlpInput = b.layerNorm(x, 'post_attention_layernorm', c.layer_norm_epsilon)
        const second = residual(x, mlpInput)
        const inner = b.activation(yield* b.linear(mlpInput, 'mlp.dense_h_to_4h'), 'gelu_tanh')
        return b.residual(second, yield* b.linear(inner, 'mlp.dense_4h_to_h'))
      },

      final: { prefix, linears: [], parameters: layerNorms(hidden, 'ln_f') },

      finish: (b, x) => b.layerNorm(x, 'ln_f', c.layer_norm_epsilon),

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
    }
  },
}
