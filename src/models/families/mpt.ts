import * as z from 'zod'
import { alibiSlopes } from '../alibi.js'
import {
  blockCount,
  checkHeads,
  checkSupported,
  headWeight,
  parseConfig,
  size,
  type Family,
} from '../family.js'
import { plainMlp } from '../feed-forward.js'

const schema = z.object({
  vocab_size: size,
  d_model: size,
  n_layers: blockCount,
  n_heads: size,
  max_seq_len: size.default(2048),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  no_bias: z.boolean().default(true),
  attn_config: z
    .object({
      alibi: z.boolean().default(true),
      alibi_bias_max: z.number().positive().default(8),
      attn_type: z.string().default('multihead_attention'),
      clip_qkv: z.number().nullish(),
      prefix_lm: z.boolean().default(false),
      qk_ln: z.boolean().default(false),
      softmax_scale: z.number().positive().nullish(),
    })
    .default({
      alibi: true,
      alibi_bias_max: 8,
      attn_type: 'multihead_attention',
      prefix_lm: false,
      qk_ln: false,
    }),
  tie_word_embeddings: z.boolean().default(true),
})

/** MPT: attention with linear biases (ALiBi), and no bias anywhere else. */
export const mpt: Family = {
  modelType: 'mpt',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const { alibi, attn_type, clip_qkv, prefix_lm, qk_ln, softmax_scale, alibi_bias_max } = c.attn_config
    checkSupported(c.no_bias, 'no_bias', c.no_bias, 'only models without biases are')
    checkSupported(alibi, 'attn_config.alibi', alibi, 'only models with ALiBi are')
    const multihead = attn_type === 'multihead_attention'
    checkSupported(multihead, 'attn_config.attn_type', attn_type, 'it must be multihead_attention')
    checkSupported(!clip_qkv, 'attn_config.clip_qkv', clip_qkv, 'only models that do not clip are')
    checkSupported(!prefix_lm, 'attn_config.prefix_lm', prefix_lm, 'only causal models are')
    checkSupported(!qk_ln, 'attn_config.qk_ln', qk_ln, 'only models without norms of q and k are')
    const usual = alibi_bias_max === 8
    checkSupported(usual, 'attn_config.alibi_bias_max', alibi_bias_max, 'it must be 8')
    const hidden = c.d_model
    const heads = c.n_heads
    checkHeads(hidden, heads, heads)
    const headDim = hidden / heads
    const scale = softmax_scale ?? headDim ** -0.5
    const slopes = alibiSlopes(heads)
    // expansion_ratio is not read, here as in transformers.
    const mlp = plainMlp({ hidden, inner: 4 * hidden, activation: 'gelu' }, 'ffn.up_proj', 'ffn.down_proj')
    const prefix = weights.findPrefix(['transformer.', ''], 'wte.weight')
    const embedding = `${prefix}wte.weight`
    const norms = (...names: string[]) => names.map((name) => ({ name: `${name}.weight`, shape: [hidden] }))

    return {
      hiddenSize: hidden,
      widestActivation: 4 * hidden,
      vocabularySize: c.vocab_size,
      contextLength: c.max_seq_len,
      blockCount: c.n_layers,

      block: (index) => ({
        prefix: `${prefix}blocks.${index}.`,
        linears: [
          { name: 'attn.Wqkv', rows: 3 * hidden, columns: hidden, bias: false },
          { name: 'attn.out_proj', rows: hidden, columns: hidden, bias: false },
          ...mlp.linears,
        ],
        parameters: norms('norm_1', 'norm_2'),
      }),

      embed: (w, device, ids) => device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype),

      *forward(b, x) {
        const qkv = yield* b.linear(b.layerNorm(x, 'norm_1', c.layer_norm_epsilon), 'attn.Wqkv')
        const [q, k, v] = b.splitColumns(qkv, hidden, hidden, hidden)
        const shape = { heads, kvHeads: heads, headDim, scale, slopes: b.upload(slopes) }
        const attended = b.attention(q!, k!, v!, shape)
        x = b.residual(x, yield* b.linear(attended, 'attn.out_proj'))
        const fed = yield* mlp.forward(b, b.layerNorm(x, 'norm_2', c.layer_norm_epsilon))
        return b.residual(x, fed)
      },

      final: { prefix, linears: [], parameters: norms('norm_f') },

      finish: (b, x) => b.layerNorm(x, 'norm_f', c.layer_norm_epsilon),

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
    }
  },
}
