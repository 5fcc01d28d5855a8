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

const schema = z.object({
  vocab_size: size,
  n_embd: size,
  n_layer: blockCount,
  n_head: size,
  n_positions: size.default(1024),
  n_inner: size.nullish(),
  activation_function: activation.default('gelu_tanh'),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  scale_attn_weights: z.boolean().default(true),
  scale_attn_by_inverse_layer_idx: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(true),
})

/** GPT-2. Its linear layers are Conv1D: stored [in, out], with q, k and v in one matrix. */
export const gpt2: Family = {
  modelType: 'gpt2',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const hidden = c.n_embd
    const inner = c.n_inner ?? 4 * hidden
    const heads = c.n_head
    checkHeads(hidden, heads, heads)
    const headDim = hidden / heads
    const prefix = weights.findPrefix(['transformer.', ''], 'wte.weight')
    const embedding = `${prefix}wte.weight`
    const conv1d = (name: string, rows: number, columns: number) =>
      ({ name, rows, columns, bias: true, layout: 'in-out' }) as const

    return {
      hiddenSize: hidden,
      widestActivation: Math.max(inner, 3 * hidden),
      vocabularySize: c.vocab_size,
      contextLength: c.n_positions,
      blockCount: c.n_layer,

      block: (index) => ({
        prefix: `${prefix}h.${index}.`,
        linears: [
          conv1d('attn.c_attn', 3 * hidden, hidden),
          conv1d('attn.c_proj', hidden, hidden),
          conv1d('mlp.c_fc', inner, hidden),
          conv1d('mlp.c_proj', hidden, inner),
        ],
        parameters: layerNorms(hidden, 'ln_1', 'ln_2'),
      }),

      embed(w, device, ids, positions) {
        const x = device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype)
        const table = w.stored(`${prefix}wpe.weight`, [c.n_positions, hidden])
        device.add(x, device.embedding(table, positions, w.dtype))
        return x
      },

      *forward(b, x) {
        const scale =
          (c.scale_attn_weights ? headDim ** -0.5 : 1) / (c.scale_attn_by_inverse_layer_idx ? b.index + 1 : 1)
        const qkv = yield* b.linear(b.layerNorm(x, 'ln_1', c.layer_norm_epsilon), 'attn.c_attn')
        const [q, k, v] = b.splitColumns(qkv, hidden, hidden, hidden)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads: heads, headDim, scale })
        x = b.residual(x, yield* b.linear(attended, 'attn.c_proj'))
        const mlpInput = b.layerNorm(x, 'ln_2', c.layer_norm_epsilon)
        const innerOutput = b.activation(yield* b.linear(mlpInput, 'mlp.c_fc'), c.activation_function)
        return b.residual(x, yield* b.linear(innerOutput, 'mlp.c_proj'))
      },

      final: { prefix, linears: [], parameters: layerNorms(hidden, 'ln_f') },

      finish: (b, x) => b.layerNorm(x, 'ln_f', c.layer_norm_epsilon),

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
    }
  },
}
