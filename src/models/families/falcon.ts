import * as z from 'zod'
import { alibiSlopes } from '../alibi.js'
import {
  activation,
  blockCount,
  checkHeads,
  checkSupported,
  headWeight,
  layerNorms,
  parseConfig,
  renamed,
  size,
  type Family,
} from '../family.js'
import { checkWholeHeads, rotaryConfig, rotaryPositions } from '../rotary.js'

const schema = rotaryConfig.extend({
  vocab_size: size,
  hidden_size: size,
  num_hidden_layers: blockCount,
  num_attention_heads: size,
  num_kv_heads: size.nullish(),
  ffn_hidden_size: size.nullish(),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  activation: activation.default('gelu'),
  alibi: z.boolean().default(false),
  bias: z.boolean().default(false),
  multi_query: z.boolean().default(true),
  new_decoder_architecture: z.boolean().default(false),
  parallel_attn: z.boolean().default(true),
  num_ln_in_parallel_attn: z.int().min(1).max(2).nullish(),
  tie_word_embeddings: z.boolean().default(true),
})

/**
 * Falcon. Three kinds: 7B has one key/value head, and attention and MLP side by side on one norm; 40B, 180B and Falcon 2
 * ("new_decoder_architecture") have several, and a norm for each or one for both; the RW models are like BLOOM.
 */
export const falcon: Family = {
  modelType: 'falcon',

  build(config, weights) {
    const names = { n_embed: 'hidden_size', n_layer: 'num_hidden_layers', n_head: 'num_attention_heads' }
    const c = parseConfig(schema, renamed(config, { ...names, n_head_kv: 'num_kv_heads' }))
    const hidden = c.hidden_size
    const inner = c.ffn_hidden_size ?? 4 * hidden
    const heads = c.num_attention_heads
    const several = c.new_decoder_architecture ? (c.num_kv_heads ?? heads) : heads
    const kvHeads = c.multi_query && !c.new_decoder_architecture ? 1 : several
    checkHeads(hidden, heads, kvHeads)
    const headDim = hidden / heads
    checkWholeHeads(c, headDim)
    const sideBySide = c.parallel_attn || !c.new_decoder_architecture
    checkSupported(sideBySide, 'parallel_attn', false, 'with new_decoder_architecture it must be true')
    // Transformers splits the fused matrix into as many keys as queries, whatever the config says.
    const everyHead = c.new_decoder_architecture || c.multi_query || (c.num_kv_heads ?? heads) === heads
    checkSupported(
      everyHead,
      'num_kv_heads',
      c.num_kv_heads,
      'without multi_query it must be the number of heads',
    )
    const scale = headDim ** -0.5
    const parallel = c.new_decoder_architecture || c.parallel_attn
    const separateNorms = c.new_decoder_architecture && (c.num_ln_in_parallel_attn ?? 2) === 2
    // Whether attention and MLP read the same input.
    const shared = parallel && !separateNorms
    const norms = separateNorms ? ['ln_attn', 'ln_mlp'] : ['input_layernorm']
    // The slopes are scaled like the scores.
    const slopes = c.alibi ? alibiSlopes(heads).map((slope) => slope * scale) : undefined
    const prefix = weights.findPrefix(['transformer.', ''], 'word_embeddings.weight')
    const embedding = `${prefix}word_embeddings.weight`
    const fusedName = 'self_attention.query_key_value'
    const { bias } = c

    return {
      hiddenSize: hidden,
      widestActivation: Math.max(inner, (heads + 2 * kvHeads) * headDim),
      vocabularySize: c.vocab_size,
      contextLength: c.max_position_embeddings,
      blockCount: c.num_hidden_layers,
      ...(!c.alibi && { rotary: rotaryPositions(c, headDim) }),

      block: (index) => ({
        prefix: `${prefix}h.${index}.`,
        linears: [
          { name: fusedName, rows: (heads + 2 * kvHeads) * headDim, columns: hidden, bias },
          ...(shared ? [{ name: 'mlp.dense_h_to_4h', rows: inner, columns: hidden, bias }] : []),
          { name: 'self_attention.dense', rows: hidden, columns: hidden, bias },
          ...(shared ? [] : [{ name: 'mlp.dense_h_to_4h', rows: inner, columns: hidden, bias }]),
          { name: 'mlp.dense_4h_to_h', rows: hidden, columns: inner, bias },
        ],
        parameters: layerNorms(hidden, ...norms, ...(parallel ? [] : ['post_attention_layernorm'])),
      }),

      embed: (w, device, ids) => device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype),

      *forward(b, x) {
        const normed = b.layerNorm(x, norms[0]!, c.layer_norm_epsilon)
        const [qkv, sharedInner] = yield* b.linears(
          normed,
          fusedName,
          ...(shared ? ['mlp.dense_h_to_4h'] : []),
        )
        const [q, k, v] = b.splitGroups(qkv!, kvHeads, (heads / kvHeads) * headDim, headDim, headDim)
        if (!slopes) {
          b.rotary(q!, headDim)
          b.rotary(k!, headDim)
        }
        const attended = b.attention(q!, k!, v!, {
          heads,
          kvHeads,
          headDim,
          scale,
          slopes: slopes && b.upload(slopes),
        })
        const attention = yield* b.linear(attended, 'self_attention.dense')
        const stream = parallel ? x : b.residual(x, attention)
        let inside = sharedInner
        if (!inside) {
          const norm = separateNorms ? 'ln_mlp' : 'post_attention_layernorm'
          inside = yield* b.linear(b.layerNorm(stream, norm, c.layer_norm_epsilon), 'mlp.dense_h_to_4h')
        }
        const mlp = yield* b.linear(b.activation(inside, c.activation), 'mlp.dense_4h_to_h')
        return parallel ? b.parallelResidual(x, attention, mlp) : b.residual(stream, mlp)
      },

      final: { prefix, linears: [], parameters: layerNorms(hidden, 'ln_f') },

      finish: (b, x) => b.layerNorm(x, 'ln_f', c.layer_norm_epsilon),

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
    }
  },
}
