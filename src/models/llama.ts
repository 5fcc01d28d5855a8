import * as z from 'zod'
import { activation, checkHeads, parseConfig, size, type Family } from './family.js'
import { rotaryConfig, rotaryFrequencies } from './rotary.js'

const schema = rotaryConfig.extend({
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: size,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  max_position_embeddings: size.default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  hidden_act: activation.default('silu'),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(false),
})

/** LLaMA 1-3 and the models that share their blocks: RMS norm, rotary positions, grouped-query attention, gated MLP. */
export const llama: Family = {
  modelType: 'llama',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const hidden = c.hidden_size
    const heads = c.num_attention_heads
    const kvHeads = c.num_key_value_heads ?? heads
    checkHeads(hidden, heads, kvHeads, c.head_dim ?? undefined)
    const headDim = c.head_dim ?? hidden / heads
    const prefix = weights.findPrefix(['model.', ''], 'embed_tokens.weight')
    const embedding = `${prefix}embed_tokens.weight`
    const attention = (name: string, rows: number, columns: number) => ({
      name: `self_attn.${name}`,
      rows,
      columns,
      bias: c.attention_bias,
    })
    const mlp = (name: string, rows: number, columns: number) => ({
      name: `mlp.${name}`,
      rows,
      columns,
      bias: c.mlp_bias,
    })

    return {
      hiddenSize: hidden,
      widestActivation: Math.max(c.intermediate_size, heads * headDim, hidden),
      vocabularySize: c.vocab_size,
      contextLength: c.max_position_embeddings,
      blockCount: c.num_hidden_layers,
      rotaryFrequencies: rotaryFrequencies(c, headDim),

      block: (index) => ({
        prefix: `${prefix}layers.${index}.`,
        linears: [
          attention('q_proj', heads * headDim, hidden),
          attention('k_proj', kvHeads * headDim, hidden),
          attention('v_proj', kvHeads * headDim, hidden),
          attention('o_proj', hidden, heads * headDim),
          mlp('gate_proj', c.intermediate_size, hidden),
          mlp('up_proj', c.intermediate_size, hidden),
          mlp('down_proj', hidden, c.intermediate_size),
        ],
        vectors: [
          { name: 'input_layernorm.weight', size: hidden },
          { name: 'post_attention_layernorm.weight', size: hidden },
        ],
      }),

      embed: (w, device, ids) => device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype),

      *forward(b, x) {
        const normed = b.rmsNorm(x, 'input_layernorm', c.rms_norm_eps)
        const [q, k, v] = yield* b.linears(normed, 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj')
        b.rotary(q!, headDim)
        b.rotary(k!, headDim)
        const attended = b.attention(q!, k!, v!, { heads, kvHeads, headDim, scale: headDim ** -0.5 })
        x = b.residual(x, yield* b.linear(attended, 'self_attn.o_proj'))
        const again = b.rmsNorm(x, 'post_attention_layernorm', c.rms_norm_eps)
        const [gate, up] = yield* b.linears(again, 'mlp.gate_proj', 'mlp.up_proj')
        return b.residual(x, yield* b.linear(b.gated(gate!, up!, c.hidden_act), 'mlp.down_proj'))
      },

      finish: (w, device, x) => device.rmsNorm(x, w.parameter(`${prefix}norm.weight`, [hidden]), c.rms_norm_eps),

      head: (w) => {
        const name = c.tie_word_embeddings || !w.has('lm_head.weight') ? embedding : 'lm_head.weight'
        return w.stored(name, [c.vocab_size, hidden])
      },
    }
  },
}
