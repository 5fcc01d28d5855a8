import * as z from 'zod'
import type { Architecture } from '../architecture.js'
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
import type { Weights } from '../weights.js'

const common = z.object({
  vocab_size: size,
  n_embd: size,
  n_layer: blockCount,
  n_head: size,
  n_positions: size.default(1024),
  n_inner: size.nullish(),
  activation_function: activation.default('gelu_tanh'),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  scale_attn_weights: z.boolean().default(true),
  tie_word_embeddings: z.boolean().default(true),
})

/** What GPT-2's relatives differ in. */
interface Variant {
  layout: 'in-out' | 'out-in'
  kvHeads: number
  /** Whether the rows of the fused matrix are q, k and v of one head after the other, instead of all heads' q, then k, then v. */
  byHead?: boolean
  /** The scores of block i are divided by i + 1. */
  scaledByBlock?: boolean
}

function architecture(c: z.output<typeof common>, weights: Weights, variant: Variant): Architecture {
  const hidden = c.n_embd
  const inner = c.n_inner ?? 4 * hidden
  const heads = c.n_head
  const { kvHeads, layout } = variant
  checkHeads(hidden, heads, kvHeads)
  const headDim = hidden / heads
  const kvSize = kvHeads * headDim
  const prefix = weights.findPrefix(['transformer.', ''], 'wte.weight')
  const embedding = `${prefix}wte.weight`
  const linear = (name: string, rows: number, columns: number) => ({
    name,
    rows,
    columns,
    bias: true,
    layout,
  })

  return {
    hiddenSize: hidden,
    widestActivation: Math.max(inner, hidden + 2 * kvSize),
    vocabularySize: c.vocab_size,
    contextLength: c.n_positions,
    blockCount: c.n_layer,

    block: (index) => ({
      prefix: `${prefix}h.${index}.`,
      linears: [
        linear('attn.c_attn', hidden + 2 * kvSize, hidden),
        linear('attn.c_proj', hidden, hidden),
        linear('mlp.c_fc', inner, hidden),
        linear('mlp.c_proj', hidden, inner),
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
      const scale = (c.scale_attn_weights ? headDim ** -0.5 : 1) / (variant.scaledByBlock ? b.index + 1 : 1)
      const qkv = yield* b.linear(b.layerNorm(x, 'ln_1', c.layer_norm_epsilon), 'attn.c_attn')
      const [q, k, v] = variant.byHead
        ? b.splitGroups(qkv, heads, headDim, headDim, headDim)
        : b.splitColumns(qkv, hidden, kvSize, kvSize)
      const attended = b.attention(q!, k!, v!, { heads, kvHeads, headDim, scale })
      x = b.residual(x, yield* b.linear(attended, 'attn.c_proj'))
      const mlpInput = b.layerNorm(x, 'ln_2', c.layer_norm_epsilon)
      const innerOutput = b.activation(yield* b.linear(mlpInput, 'mlp.c_fc'), c.activation_function)
      return b.residual(x, yield* b.linear(innerOutput, 'mlp.c_proj'))
    },

    final: { prefix, linears: [], parameters: layerNorms(hidden, 'ln_f') },

    finish: (b, x) => b.layerNorm(x, 'ln_f', c.layer_norm_epsilon),

    head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
  }
}

const schema = common.extend({ scale_attn_by_inverse_layer_idx: z.boolean().default(false) })

/** GPT-2. Its linear layers are Conv1D: stored [in, out], with q, k and v in one matrix. */
export const gpt2: Family = {
  modelType: 'gpt2',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const scaledByBlock = c.scale_attn_by_inverse_layer_idx
    return architecture(c, weights, { layout: 'in-out', kvHeads: c.n_head, scaledByBlock })
  },
}

const bigcodeSchema = common.extend({ multi_query: z.boolean().default(true) })

/** StarCoder and SantaCoder: GPT-2 with one key/value head, and matrices stored [out, in]. */
export const gptBigcode: Family = {
  modelType: 'gpt_bigcode',

  build(config, weights) {
    const c = parseConfig(bigcodeSchema, config)
    const kvHeads = c.multi_query ? 1 : c.n_head
    return architecture(c, weights, { layout: 'out-in', kvHeads, byHead: !c.multi_query })
  },
}
