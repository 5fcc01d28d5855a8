import type { Attention } from './attention.js'
import { rotaryPositions, type RotaryConfig } from './rotary.js'

/** The entries of config.json that multi-head latent attention has. */
export interface LatentAttentionConfig extends RotaryConfig {
  hidden_size: number
  num_attention_heads: number
  q_lora_rank?: number | null | undefined
  kv_lora_rank: number
  qk_nope_head_dim: number
  qk_rope_head_dim: number
  v_head_dim: number
  attention_bias: boolean
}

/** Of the norms of what is compressed, whatever the config says of the others. */
const epsilon = 1e-6

/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values are made of a narrow projection of the input, and a
 * part of each head, whose key all heads share, rotates. `scale`: the factor of the scores.
 */
export function latentAttention(
  c: LatentAttentionConfig,
  { scale, interleaved }: { scale: number; interleaved: boolean },
): Attention {
  const { hidden_size: hidden, num_attention_heads: heads, q_lora_rank: qRank, kv_lora_rank: rank } = c
  const { qk_nope_head_dim: plain, qk_rope_head_dim: rotating, v_head_dim: valueDim } = c
  const headDim = plain + rotating
  const bias = c.attention_bias
  const fromLatent = {
    name: 'self_attn.kv_b_proj',
    rows: heads * (plain + valueDim),
    columns: rank,
    bias: false,
  }
  const latent = { name: 'self_attn.kv_a_proj_with_mqa', rows: rank + rotating, columns: hidden, bias }
  const output = { name: 'self_attn.o_proj', rows: hidden, columns: heads * valueDim, bias }
  const query = (name: string, columns: number) => ({ name, rows: heads * headDim, columns, bias: false })
  const norm = (name: string, size: number) => ({ name: `${name}.weight`, shape: [size] })
  const compressed = typeof qRank === 'number'

  return {
    widest: heads * (headDim + Math.max(headDim, valueDim)),
    rotary: rotaryPositions(c, rotating),
    first: [compressed ? 'self_attn.q_a_proj' : 'self_attn.q_proj', latent.name],
    linears: compressed
      ? [
          { name: 'self_attn.q_a_proj', rows: qRank, columns: hidden, bias },
          latent,
          query('self_attn.q_b_proj', qRank),
          fromLatent,
          output,
        ]
      : [query('self_attn.q_proj', hidden), latent, fromLatent, output],
    parameters: [
      ...(compressed ? [norm('self_attn.q_a_layernorm', qRank)] : []),
      norm('self_attn.kv_a_layernorm', rank),
    ],

    *rest(b, [first, second]) {
      let q = first!
      if (compressed) {
        const normed = b.rmsNorm(q, 'self_attn.q_a_layernorm', epsilon)
        b.drop(q)
        q = yield* b.linear(normed, 'self_attn.q_b_proj')
      }
      const [narrow, kRotating] = b.splitColumns(second!, rank, rotating)
      const normed = b.rmsNorm(narrow!, 'self_attn.kv_a_layernorm', epsilon)
      b.drop(narrow!)
      const [kPlain, v] = b.splitGroups(yield* b.linear(normed, fromLatent.name), heads, plain, valueDim)
      const [qPlain, qRotating] = b.splitGroups(q, heads, plain, rotating)
      b.rotary(qRotating!, rotating, interleaved)
      b.rotary(kRotating!, rotating, interleaved)
      q = b.joinGroups(heads, qPlain!, qRotating!)
      const k = b.joinGroups(heads, kPlain!, b.repeatColumns(kRotating!, heads))
      // Values are as wide as keys where attention is computed; what is added to them is zero.
      const missing = headDim - valueDim
      const wide = missing ? b.joinGroups(heads, v!, b.zeros(v!.rows, heads * missing, v!.dtype)) : v!
      let attended = b.attention(q, k, wide, { heads, kvHeads: heads, headDim, scale })
      if (missing) {
        const [values, nothing] = b.splitGroups(attended, heads, valueDim, missing)
        b.drop(nothing!)
        attended = values!
      }
      return yield* b.linear(attended, output.name)
    },
  }
}
