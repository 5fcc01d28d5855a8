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
  tokenCount,
  type Family,
} from '../family.js'

const kinds = z.array(z.enum(['global', 'local']))

const schema = z.object({
  vocab_size: size,
  hidden_size: size,
  num_layers: blockCount,
  num_heads: size,
  max_position_embeddings: size.default(2048),
  intermediate_size: size.nullish(),
  window_size: tokenCount.default(256),
  /** Runs of blocks: the kinds of attention, and how often they repeat. */
  attention_types: z.array(z.tuple([kinds, z.int().min(0)])).nullish(),
  activation_function: activation.default('gelu_tanh'),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  tie_word_embeddings: z.boolean().default(true),
})

/** GPT-Neo: GPT-2's block with local attention in some blocks. The scores are not scaled. */
export const gptNeo: Family = {
  modelType: 'gpt_neo',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const hidden = c.hidden_size
    const inner = c.intermediate_size ?? 4 * hidden
    const heads = c.num_heads
    checkHeads(hidden, heads, heads)
    const headDim = hidden / heads
    const runs = c.attention_types ?? [[['global', 'local'], 12]]
    const described = runs.reduce((sum, [kinds, count]) => sum + kinds.length * count, 0)
    if (described !== c.num_layers) {
      const message = `config.json: attention_types is for ${described} blocks, but num_layers is ${c.num_layers}`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    // A run without kinds adds nothing, however often it repeats.
    const attention = runs
      .filter(([kinds]) => kinds.length > 0)
      .flatMap(([kinds, count]) => Array.from({ length: count }, () => kinds).flat())
    const prefix = weights.findPrefix(['transformer.', ''], 'wte.weight')
    const embedding = `${prefix}wte.weight`

    return {
      hiddenSize: hidden,
      widestActivation: inner,
      vocabularySize: c.vocab_size,
      contextLength: c.max_position_embeddings,
      blockCount: c.num_layers,

      block: (index) => ({
        prefix: `${prefix}h.${index}.`,
        linears: [
          { name: 'attn.attention.q_proj', rows: hidden, columns: hidden, bias: false },
          { name: 'attn.attention.k_proj', rows: hidden, columns: hidden, bias: false },
          { name: 'attn.attention.v_proj', rows: hidden, columns: hidden, bias: false },
          { name: 'attn.attention.out_proj', rows: hidden, columns: hidden, bias: true },
          { name: 'mlp.c_fc', rows: inner, columns: hidden, bias: true },
          { name: 'mlp.c_proj', rows: hidden, columns: inner, bias: true },
        ],
        parameters: layerNorms(hidden, 'ln_1', 'ln_2'),
        window: attention[index] === 'local' ? c.window_size : undefined,
      }),

      embed(w, device, ids, positions) {
        const x = device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype)
        const table = w.stored(`${prefix}wpe.weight`, [c.max_position_embeddings, hidden])
        device.add(x, device.embedding(table, positions, w.dtype))
        return x
      },

      *forward(b, x) {
        const normed = b.layerNorm(x, 'ln_1', c.layer_norm_epsilon)
        const names = ['q_proj', 'k_proj', 'v_proj'].map((name) => `attn.attention.${name}`)
        const [q, k, v] = yield* b.linears(normed, ...names)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads: heads, headDim, scale: 1 })
        x = b.residual(x, yield* b.linear(attended, 'attn.attention.out_proj'))
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
