import * as z from 'zod'
import type { Architecture } from '../architecture.js'
import type { Tensor } from '../../native/device.js'
import { selfAttention, type Attention, type AttentionVariant } from '../attention.js'
import type { Block } from '../block.js'
import { activation, blockCount, headWeight, parseConfig, size, type Family } from '../family.js'
import { gatedMlp, type FeedForward, type Mlp } from '../feed-forward.js'
import { rotaryConfig } from '../rotary.js'
import type { ParameterSpec } from '../specs.js'
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
export type LlamaConfig = z.output<typeof llamaConfig>

/** The sizes of the MLP that a config of this kind describes, with biases or without. */
export const mlpSizes = (
  c: Pick<LlamaConfig, 'hidden_size' | 'intermediate_size' | 'hidden_act'>,
  bias = false,
) => ({ hidden: c.hidden_size, inner: c.intermediate_size, activation: c.hidden_act, bias })

/** The names of the norms on both sides of a block's sublayers; there are only those that are named. */
export interface SublayerNorms {
  beforeAttention?: string
  /** Before the attention's output is added to the residual stream. */
  afterAttention?: string
  beforeMlp?: string
  afterMlp?: string
}

/** The norms of LLaMA. */
const norms: SublayerNorms = { beforeAttention: 'input_layernorm', beforeMlp: 'post_attention_layernorm' }

/** How a family differs from LLaMA. */
export interface LlamaVariant extends AttentionVariant {
  /** Which linear layers have a bias. Default: none. */
  bias?: { qkv?: boolean; output?: boolean; mlp?: boolean }
  /** What takes the place of the root-mean-square norms: layer norms with a bias or without. */
  norm?: 'layer' | 'layer without bias'
  norms?: SublayerNorms
  /** The embeddings are multiplied with it. */
  embeddingScale?: number
  /** What a sublayer adds to the residual stream is multiplied with it. */
  residualScale?: number
  /** The logits are multiplied with it. */
  logitScale?: number
  logitSoftcap?: number | undefined
  /** Whether the logits have a bias. */
  headBias?: boolean
  /** How many keys a query sees in a block; undefined for all. */
  window?: (block: number) => number | undefined
  /** What takes the place of the attention. */
  attention?: Attention
  /** What takes the place of the gated MLP. */
  feedForward?: FeedForward | ((block: number) => FeedForward)
  /** Whether the gated MLP stands beside the attention, on the same norm. */
  parallel?: boolean
}

/** A model of LLaMA's blocks: RMS norm, rotary positions, grouped-query attention, gated MLP. */
export function llamaArchitecture(
  c: LlamaConfig,
  weights: Weights,
  variant: LlamaVariant = {},
): Architecture {
  const hidden = c.hidden_size
  const prefix = weights.findPrefix(['model.', ''], 'embed_tokens.weight')
  const embedding = `${prefix}embed_tokens.weight`
  const { epsilon = c.rms_norm_eps, residualScale } = variant
  const named = variant.norms ?? (variant.parallel ? { beforeAttention: 'input_layernorm' } : norms)

  const norm = {
    apply: (b: Block, x: Tensor, name: string) =>
      variant.norm ? b.layerNorm(x, name, epsilon) : b.rmsNorm(x, name, epsilon),
    parameters: (name: string): ParameterSpec[] => [
      { name: `${name}.weight`, shape: [hidden], offset: variant.normOffset ?? 0 },
      ...(variant.norm === 'layer' ? [{ name: `${name}.bias`, shape: [hidden] }] : []),
    ],
  }
  const normed = (b: Block, x: Tensor, name: string | undefined) =>
    name === undefined ? b.copy(x) : norm.apply(b, x, name)
  /** What a sublayer adds to the stream, of its output, which it consumes. */
  const added = (b: Block, y: Tensor, name: string | undefined) => {
    const after = name === undefined ? y : norm.apply(b, y, name)
    if (after !== y) b.drop(y)
    return residualScale === undefined ? after : b.scale(after, residualScale)
  }

  const bias = { qkv: false, output: false, mlp: false, ...variant.bias }
  const mlp: Mlp = gatedMlp(mlpSizes(c, bias.mlp))
  const given = variant.feedForward ?? mlp
  const feedForwardOf = typeof given === 'function' ? given : () => given
  const attention = variant.attention ?? selfAttention(c, variant)
  const beside = variant.parallel === true ? mlp : undefined
  const kinds = new Set(Array.from({ length: c.num_hidden_layers }, (_, index) => feedForwardOf(index)))
  const widths = [...kinds].flatMap(({ linears }) => linears.map(({ rows }) => rows))

  return {
    hiddenSize: hidden,
    widestActivation: widths.reduce(
      (most, width) => Math.max(most, width),
      Math.max(attention.widest, hidden),
    ),
    vocabularySize: c.vocab_size,
    contextLength: c.max_position_embeddings,
    blockCount: c.num_hidden_layers,
    rotary: attention.rotary,
    ...(variant.logitSoftcap !== undefined && { logitSoftcap: variant.logitSoftcap }),

    block(index) {
      const feedForward = feedForwardOf(index)
      const { first, linears } = attention
      const inputs = linears.slice(0, first.length)
      return {
        prefix: `${prefix}layers.${index}.`,
        linears: beside
          ? [
              ...inputs,
              ...beside.linears.slice(0, beside.first.length),
              ...linears.slice(first.length),
              ...beside.linears.slice(beside.first.length),
            ]
          : [...linears, ...feedForward.linears],
        parameters: [
          ...Object.values(named as Record<string, string>).flatMap(norm.parameters),
          ...attention.parameters,
          ...feedForward.parameters,
        ],
        window: variant.window?.(index),
        ...(variant.rotates && { rotates: variant.rotates(index) }),
      }
    },

    embed(w, device, ids) {
      const x = device.embedding(w.stored(embedding, [c.vocab_size, hidden]), ids, w.dtype)
      if (variant.embeddingScale !== undefined) device.scale(x, variant.embeddingScale)
      return x
    },

    *forward(b, x) {
      const input = normed(b, x, named.beforeAttention)
      const outputs = yield* b.linears(input, ...attention.first, ...(beside?.first ?? []))
      const attended = yield* attention.rest(b, outputs.slice(0, attention.first.length))
      if (beside) {
        const fed = yield* beside.rest(b, outputs.slice(attention.first.length))
        return b.parallelResidual(x, attended, fed)
      }
      x = b.residual(x, added(b, attended, named.afterAttention))
      const fed = yield* feedForwardOf(b.index).forward(b, normed(b, x, named.beforeMlp))
      return b.residual(x, added(b, fed, named.afterMlp))
    },

    final: { prefix, linears: [], parameters: norm.parameters('norm') },

    finish(b, x) {
      const out = norm.apply(b, x, 'norm')
      return variant.logitScale === undefined ? out : b.scale(out, variant.logitScale)
    },

    head: (w) => w.stored(headWeight(w, c.tie_word_embeddings, embedding), [c.vocab_size, hidden]),
    ...(variant.headBias && { headBias: (w: Weights) => w.parameter('lm_head.bias', [c.vocab_size]) }),
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
