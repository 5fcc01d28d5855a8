import * as z from 'zod'
import { SparseGptError } from '../../errors.js'
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
import { rotaryFrequencies } from '../rotary.js'

const schema = z.object({
  vocab_size: size,
  n_embd: size,
  n_layer: blockCount,
  n_head: size,
  n_positions: size.default(2048),
  n_inner: size.nullish(),
  rotary_dim: size.default(64),
  activation_function: activation.default('gelu_tanh'),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  tie_word_embeddings: z.boolean().default(false),
})

/** GPT-J: attention and MLP side by side on one norm; rotary positions turn neighbouring dimensions. */
export const gptj: Family = {
  modelType: 'gptj',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const hidden = c.n_embd
    const inner = c.n_inner ?? 4 * hidden
    const heads = c.n_head
    checkHeads(hidden, heads, heads)
    const headDim = hidden / heads
    if (c.rotary_dim > headDim) {
      const message = `config.json: rotary_dim ${c.rotary_dim} exceeds the ${headDim} dimensions of a head`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    const prefix = weights.findPrefix(['transformer.', ''], 'wte.weight')
    const embedding = `${prefix}wte.weight`
    const frequencies = rotaryFrequencies(10000, c.rotary_dim)

    return {
      hiddenSize: hidden,
      widestActivation: inner,
      vocabularySize: c.vocab_size,
      contextLength: c.n_positions,
      blockCount: c.n_layer,
      rotary: { frequencies: () => frequencies, scale: 1 },

      block: (index) => ({
        prefix: `${prefix}h.${index}.`,
        linears: [
          { name: 'attn.q_proj', rows: hidden, columns: hidden, bias: false },
          { name: 'attn.k_proj', rows: hidden, columns: hidden, bias: false },
          { name: 'attn.v_proj', rows: hidden, columns: hidden, bias: false },
          { name: 'mlp.fc_in', rows: inner, columns: hidden, bias: true },
          { name: 'attn.out_proj', rows: hidden, columns: hidden, bias: false },
          { name: 'mlp.fc_out', rows: hidden, columns: inner, bias: true },
        ],
        parameters: layerNorms(hidden, 'ln_1'),
      }),

      embed: (w, device, ids) => device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype),

      *forward(b, x) {
        const normed = b.layerNorm(x, 'ln_1', c.layer_norm_epsilon)
        const names = ['attn.q_proj', 'attn.k_proj', 'attn.v_proj', 'mlp.fc_in']
        const [q, k, v, fcIn] = yield* b.linears(normed, ...names)
        b.rotary(q!, headDim, true)
        b.rotary(k!, headDim, true)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads: heads, headDim, scale: headDim ** -0.5 })
        const attention = yield* b.linear(attended, 'attn.out_proj')
        const mlp = yield* b.linear(b.activation(fcIn!, c.activation_function), 'mlp.fc_out')
        return b.parallelResidual(x, attention, mlp)
      },

      final: { prefix, linears: [], parameters: layerNorms(hidden, 'ln_f') },

      finish: (b, x) => b.layerNorm(x, 'ln_f', c.layer_norm_epsilon),

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
      headBias: (w) => w.parameter('lm_head.bias', [c.vocab_size]),
    }
  },
}
