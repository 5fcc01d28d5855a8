import * as z from 'zod'
import {
  activation,
  blockCount,
  checkHeads,
  headWeight,
  parseConfig,
  size,
  tokenCount,
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
  head_dim: size.nullish(),
  max_position_embeddings: size.default(4096),
  sliding_window: tokenCount.nullish(),
  rms_norm_eps: z.number().positive().default(1e-5),
  hidden_act: activation.default('silu'),
  tie_word_embeddings: z.boolean().default(false),
})

/** Phi-3, 3.5 and 4: LLaMA's block with q, k and v in one matrix, and gate and up in another. */
export const phi3: Family = {
  modelType: 'phi3',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const hidden = c.hidden_size
    const inner = c.intermediate_size
    const heads = c.num_attention_heads
    const kvHeads = c.num_key_value_heads ?? heads
    checkHeads(hidden, heads, kvHeads, c.head_dim ?? undefined)
    const headDim = c.head_dim ?? hidden / heads
    const [qSize, kvSize] = [heads * headDim, kvHeads * headDim]
    const prefix = weights.findPrefix(['model.', ''], 'embed_tokens.weight')
    const embedding = `${prefix}embed_tokens.weight`

    return {
      hiddenSize: hidden,
      widestActivation: Math.max(2 * inner, qSize + 2 * kvSize),
      vocabularySize: c.vocab_size,
      contextLength: c.max_position_embeddings,
      blockCount: c.num_hidden_layers,
      rotary: rotaryPositions(c, rotaryDimensions(c, headDim)),

      block: (index) => ({
        prefix: `${prefix}layers.${index}.`,
        linears: [
          { name: 'self_attn.qkv_proj', rows: qSize + 2 * kvSize, columns: hidden, bias: false },
          { name: 'self_attn.o_proj', rows: hidden, columns: qSize, bias: false },
          { name: 'mlp.gate_up_proj', rows: 2 * inner, columns: hidden, bias: false },
          { name: 'mlp.down_proj', rows: hidden, columns: inner, bias: false },
        ],
        parameters: ['input_layernorm.weight', 'post_attention_layernorm.weight'].map((name) => ({
          name,
          shape: [hidden],
        })),
        window: c.sliding_window ?? undefined,
      }),

      embed: (w, device, ids) => device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype),

      *forward(b, x) {
        const qkv = yield* b.linear(b.rmsNorm(x, 'input_layernorm', c.rms_norm_eps), 'self_attn.qkv_proj')
        const [q, k, v] = b.splitColumns(qkv, qSize, kvSize, kvSize)
        b.rotary(q!, headDim)
        b.rotary(k!, headDim)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads, headDim, scale: headDim ** -0.5 })
        x = b.residual(x, yield* b.linear(attended, 'self_attn.o_proj'))
        const again = b.rmsNorm(x, 'post_attention_layernorm', c.rms_norm_eps)
        const gateUp = yield* b.linear(again, 'mlp.gate_up_proj')
        const [gate, up] = b.splitColumns(gateUp, inner, inner)
        const gated = b.gated(gate!, up!, c.hidden_act)
        const output = yield* b.linear(gated, 'mlp.down_proj')
        return b.residual(x, output)
      },

      final: { prefix, linears: [], parameters: [{ name: 'norm.weight', shape: [hidden] }] },

      finish: (b, x) => b.rmsNorm(x, 'norm', c.rms_norm_eps),

      head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
    }
  },
}
