import * as z from 'zod'
import type { Architecture } from '../architecture.js'
import type { LinearSpec, ParameterSpec } from '../specs.js'
import type { Tensor } from '../../native/device.js'
import type { Block } from '../block.js'
import type { Steps } from '../steps.js'
import { activation, blockCount, checkHeads, headWeight, parseConfig, size, type Family } from '../family.js'
import { checkWholeHeads, rotaryConfig, rotaryPositions } from '../rotary.js'
import type { Weights } from '../weights.js'

/** What the config.json of LLaMA and of the families that share its blocks have in common. */
export const llamaConfig = rotaryConfig.extend({
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: blockCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  rms_norm_eps: z.number().positive().default(1e-6),
  hidden_act: activation.default('silu'),
  tie_word_embeddings: z.boolean().default(false),
})

/** How a family differs from LLaMA. */
export interface LlamaVariant {
  /** Which linear layers have a bias. Default: none. */
  bias?: { qkv?: boolean; output?: boolean; mlp?: boolean }
  /** Whether q and k of every head go through an RMS norm of their own. */
  headNorms?: boolean
  /** Whether there are norms after the attention and the MLP, too, before their outputs are added to the residual stream. */
  outputNorms?: boolean
  /** What the checkpoint stores is the norms' weights minus this. Default 0. */
  normOffset?: number
  /** The embeddings are multiplied with it. */
  embeddingScale?: number
  /** The factor of the attention scores. Default: 1 / sqrt(head size). */
  attentionScale?: number
  attentionSoftcap?: number | undefined
  logitSoftcap?: number | undefined
  /** How many keys a query sees in a block; undefined for all. */
  window?: (block: number) => number | undefined
  usualTheta?: number
  /** What takes the place of the gated MLP. */
  feedForward?: FeedForward
}

/** The second half of a block. */
export interface FeedForward {
  linears: LinearSpec[]
  parameters: ParameterSpec[]
  /** Computes, from the normed residual stream, which it consumes, what is added to the stream. */
  forward(block: Block, x: Tensor): Steps<Tensor>
}

/** A model of LLaMA's blocks: RMS norm, rotary positions, grouped-query attention, gated MLP. */
export function llamaArchitecture(
  c: z.output<typeof llamaConfig>,
  weights: Weights,
  variant: LlamaVariant = {},
): Architecture {
  const hidden = c.hidden_size
  const heads = c.num_attention_heads
  const kvHeads = c.num_key_value_heads ?? heads
  checkHeads(hidden, heads, kvHeads, c.head_dim ?? undefined)
  const headDim = c.head_dim ?? hidden / heads
  checkWholeHeads(c, headDim)
  const scale = variant.attentionScale ?? headDim ** -0.5
  const prefix = weights.findPrefix(['model.', ''], 'embed_tokens.weight')
  const embedding = `${prefix}embed_tokens.weight`
  const bias = { qkv: false, output: false, mlp: false, ...variant.bias }
  const feedForward = variant.feedForward ?? gatedMlp(c, bias.mlp)
  const norm = (name: string, columns = hidden) => ({
    name: `${name}.weight`,
    shape: [columns],
    offset: variant.normOffset ?? 0,
  })
  // Gemma 2 has the name post_attention_layernorm for what follows the attention; elsewhere it is what precedes the MLP.
  const mlpNorm = variant.outputNorms ? 'pre_feedforward_layernorm' : 'post_attention_layernorm'

  return {
    hiddenSize: hidden,
    widestActivation: Math.max(c.intermediate_size, heads * headDim, hidden),
    vocabularySize: c.vocab_size,
    contextLength: c.max_position_embeddings,
    blockCount: c.num_hidden_layers,
    rotary: rotaryPositions(c, headDim, variant.usualTheta),
    ...(variant.logitSoftcap !== undefined && { logitSoftcap: variant.logitSoftcap }),

    block: (index) => ({
      prefix: `${prefix}layers.${index}.`,
      linears: [
        { name: 'self_attn.q_proj', rows: heads * headDim, columns: hidden, bias: bias.qkv },
        { name: 'self_attn.k_proj', rows: kvHeads * headDim, columns: hidden, bias: bias.qkv },
        { name: 'self_attn.v_proj', rows: kvHeads * headDim, columns: hidden, bias: bias.qkv },
        { name: 'self_attn.o_proj', rows: hidden, columns: heads * headDim, bias: bias.output },
        ...feedForward.linears,
      ],
      parameters: [
        norm('input_layernorm'),
        norm('post_attention_layernorm'),
        ...(variant.outputNorms ? [norm(mlpNorm), norm('post_feedforward_layernorm')] : []),
        ...(variant.headNorms ? [norm('self_attn.q_norm', headDim), norm('self_attn.k_norm', headDim)] : []),
        ...feedForward.parameters,
      ],
      window: variant.window?.(index),
    }),

    embed(w, device, ids) {
      const x = device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype)
      if (variant.embeddingScale !== undefined) device.scale(x, variant.embeddingScale)
      return x
    },

    *forward(b, x) {
      const after = (y: Tensor, name: string) =>
        variant.outputNorms ? b.rmsNorm(y, name, c.rms_norm_eps) : y
      const normed = b.rmsNorm(x, 'input_layernorm', c.rms_norm_eps)
      const [q, k, v] = yield* b.linears(normed, 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj')
      if (variant.headNorms) {
        b.rmsNormHeads(q!, headDim, 'self_attn.q_norm', c.rms_norm_eps)
        b.rmsNormHeads(k!, headDim, 'self_attn.k_norm', c.rms_norm_eps)
      }
      b.rotary(q!, headDim)
      b.rotary(k!, headDim)
      const attended = b.attention(q!, k!, v!, {
        heads,
        kvHeads,
        headDim,
        scale,
        softcap: variant.attentionSoftcap,
      })
      const output = yield* b.linear(attended, 'self_attn.o_proj')
      x = b.residual(x, after(output, 'post_attention_layernorm'))
      const fed = yield* feedForward.forward(b, b.rmsNorm(x, mlpNorm, c.rms_norm_eps))
      return b.residual(x, after(fed, 'post_feedforward_layernorm'))
    },

    final: { prefix, linears: [], parameters: [norm('norm')] },

    finish: (b, x) => b.rmsNorm(x, 'norm', c.rms_norm_eps),

    head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
  }
}

function gatedMlp(c: z.output<typeof llamaConfig>, bias: boolean): FeedForward {
  const { hidden_size: hidden, intermediate_size: inner } = c
  return {
    linears: [
      { name: 'mlp.gate_proj', rows: inner, columns: hidden, bias },
      { name: 'mlp.up_proj', rows: inner, columns: hidden, bias },
      { name: 'mlp.down_proj', rows: hidden, columns: inner, bias },
    ],
    parameters: [],
    *forward(b, x) {
      const [gate, up] = yield* b.linears(x, 'mlp.gate_proj', 'mlp.up_proj')
      return yield* b.linear(b.gated(gate!, up!, c.hidden_act), 'mlp.down_proj')
    },
  }
}

const schema = llamaConfig.extend({
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
})

/** The LLaMA models 1 to 3. */
export const llama: Family = {
  modelType: 'llama',

  build(config, weights) {
    const c = parseConfig(schema, config)
    const bias = { qkv: c.attention_bias, output: c.attention_bias, mlp: c.mlp_bias }
    return llamaArchitecture(c, weights, { bias })
  },
}
