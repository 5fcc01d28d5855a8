import * as z from 'zod'
import type { Tensor } from '../../native/device.js'
import {
  activation,
  blockCount,
  checkHeads,
  checkSupported,
  headWeight,
  layerNorms,
  parseConfig,
  size,
  type Family,
} from '../family.js'

const schema = z.object({
  vocab_size: size,
  hidden_size: size,
  ffn_dim: size,
  num_hidden_layers: blockCount,
  num_attention_heads: size,
  max_position_embeddings: size.default(2048),
  word_embed_proj_dim: size.nullish(),
  activation_function: activation.default('relu'),
  do_layer_norm_before: z.boolean().default(true),
  _remove_final_layer_norm: z.boolean().default(false),
  enable_bias: z.boolean().default(true),
  layer_norm_elementwise_affine: z.boolean().default(true),
  tie_word_embeddings: z.boolean().default(true),
})

const epsilon = 1e-5
/** The rows at the start of the position table that are never used. */
const unusedPositions = 2

/** OPT. The 350M model differs: norms after the sublayers, and a smaller embedding with projections in and out. */
export const opt: Family = {
  modelType: 'opt',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const hidden = c.hidden_size
    const heads = c.num_attention_heads
    checkHeads(hidden, heads, heads)
    const headDim = hidden / heads
    const embedded = c.word_embed_proj_dim ?? hidden
    const affine = c.layer_norm_elementwise_affine
    checkSupported(affine, 'layer_norm_elementwise_affine', affine, 'layer norms need weights')
    const prefix = weights.findPrefix(['model.decoder.', 'decoder.', ''], 'embed_tokens.weight')
    const embedding = `${prefix}embed_tokens.weight`
    const normFirst = c.do_layer_norm_before
    const hasFinalNorm = normFirst && !c._remove_final_layer_norm
    const bias = c.enable_bias

    return {
      hiddenSize: hidden,
      widestActivation: Math.max(c.ffn_dim, hidden),
      vocabularySize: c.vocab_size,
      contextLength: c.max_position_embeddings,
      blockCount: c.num_hidden_layers,

      block: (index) => ({
        prefix: `${prefix}layers.${index}.`,
        linears: [
          { name: 'self_attn.q_proj', rows: hidden, columns: hidden, bias },
          { name: 'self_attn.k_proj', rows: hidden, columns: hidden, bias },
          { name: 'self_attn.v_proj', rows: hidden, columns: hidden, bias },
          { name: 'self_attn.out_proj', rows: hidden, columns: hidden, bias },
          { name: 'fc1', rows: c.ffn_dim, columns: hidden, bias },
          { name: 'fc2', rows: hidden, columns: c.ffn_dim, bias },
        ],
        parameters: layerNorms(hidden, 'self_attn_layer_norm', 'final_layer_norm'),
      }),

      embed(w, device, ids, positions) {
        let x = device.embedding(w.stored(embedding, [c.vocab_size, embedded]), ids, w.dtype)
        if (embedded !== hidden) {
          x = device.linear(x, w.parameter(`${prefix}project_in.weight`, [hidden, embedded]))
        }
        const rows = c.max_position_embeddings + unusedPositions
        const stored = w.stored(`${prefix}embed_positions.weight`, [rows, hidden])
        const table = stored.rowRange(unusedPositions, c.max_position_embeddings)
        device.add(x, device.embedding(table, positions, w.dtype))
        return x
      },

      *forward(b, x) {
        // A copy is normed either before a sublayer, or after it and its residual.
        const before = (y: Tensor, norm: string) => b.layerNorm(y, norm, epsilon)
        const attentionInput = normFirst ? before(x, 'self_attn_layer_norm') : b.copy(x)
        const names = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj']
        const [q, k, v] = yield* b.linears(attentionInput, ...names)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads: heads, headDim, scale: headDim ** -0.5 })
        x = b.residual(x, yield* b.linear(attended, 'self_attn.out_proj'))
        if (!normFirst) x = before(x, 'self_attn_layer_norm')
        const mlpInput = normFirst ? before(x, 'final_layer_norm') : b.copy(x)
        const inner = b.activation(yield* b.linear(mlpInput, 'fc1'), c.activation_function)
        x = b.residual(x, yield* b.linear(inner, 'fc2'))
        return normFirst ? x : before(x, 'final_layer_norm')
      },

      final: {
        prefix,
        linears: [],
        parameters: [
          ...(hasFinalNorm ? layerNorms(hidden, 'final_layer_norm') : []),
          ...(embedded === hidden ? [] : [{ name: 'project_out.weight', shape: [embedded, hidden] }]),
        ],
      },

      finish(b, x) {
        if (hasFinalNorm) x = b.layerNorm(x, 'final_layer_norm', epsilon)
        if (embedded !== hidden) return b.product(x, 'project_out', x.dtype)
        return hasFinalNorm ? x : b.copy(x)
      },

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, embedded]),
    }
  },
}
