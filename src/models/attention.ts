import type { Tensor } from '../native/device.js'
import type { Block } from './block.js'
import { checkHeads } from './family.js'
import {
  checkWholeHeads,
  rotaryDimensions,
  rotaryPositions,
  type Rotary,
  type RotaryConfig,
} from './rotary.js'
import type { LinearSpec, ParameterSpec } from './specs.js'
import type { Steps } from './steps.js'

/** The first half of a block. */
export interface Attention {
  linears: LinearSpec[]
  parameters: ParameterSpec[]
  /** The width of its widest activation. */
  widest: number
  rotary: Rotary | ((block: number) => Rotary)
  /** The linears that read the input, the first of `linears`. */
  first: string[]
  /** Computes what is added to the residual stream from their outputs. */
  rest(block: Block, outputs: Tensor[]): Steps<Tensor>
}

/** The entries of config.json that say how large an attention is. */
export interface AttentionConfig extends RotaryConfig {
  hidden_size: number
  num_attention_heads: number
  num_key_value_heads?: number | null | undefined
  head_dim?: number | null | undefined
  rms_norm_eps: number
}

/** How a family's attention differs from LLaMA's. */
export interface AttentionVariant {
  /** Which linear layers have a bias. Default: none. */
  bias?: { qkv?: boolean; output?: boolean }
  /**
   * The norms that q and k go through, root-mean-square ones: of every head, or (`row`) of all heads together. Default names: q_norm
   * and k_norm below self_attn.
   */
  queryKeyNorms?: { row?: boolean; names?: [q: string, k: string]; afterRotary?: boolean }
  /** What the checkpoint stores is the norms' weights minus this. Default 0. */
  normOffset?: number
  /** Of the norms. Default: rms_norm_eps. */
  epsilon?: number
  /** The factor of the attention scores. Default: 1 / sqrt(head size). */
  attentionScale?: number
  attentionSoftcap?: number | undefined
  /** The part of each head that rotates where the config does not say; by default it must be all of it. */
  partialRotary?: number
  /** Whether neighbouring dimensions rotate together. */
  interleaved?: boolean
  /** Whether a block has rotary positions. Default: all have. */
  rotates?: (block: number) => boolean
  usualTheta?: number
  /** Whether each head has a sink: the parameter self_attn.sinks. */
  sinks?: boolean
  /** Rotary positions that do not follow from the config alone. */
  rotary?: Attention['rotary']
}

/** Grouped-query attention with rotary positions. */
export function selfAttention(c: AttentionConfig, variant: AttentionVariant = {}): Attention {
  const hidden = c.hidden_size
  const heads = c.num_attention_heads
  const kvHeads = c.num_key_value_heads ?? heads
  checkHeads(hidden, heads, kvHeads, c.head_dim ?? undefined)
  const headDim = c.head_dim ?? hidden / heads
  if (variant.partialRotary === undefined) checkWholeHeads(c, headDim)
  const { bias, epsilon = c.rms_norm_eps, interleaved, queryKeyNorms: norms } = variant
  const sinks = variant.sinks ? 'self_attn.sinks' : undefined
  const names = (norms?.names ?? ['q_norm', 'k_norm']).map((name) => `self_attn.${name}`)
  const norm = (name: string, columns: number) => ({
    name: `${name}.weight`,
    shape: [columns],
    offset: variant.normOffset ?? 0,
  })
  const [qSize, kvSize] = [heads * headDim, kvHeads * headDim]
  const qkv = { columns: hidden, bias: bias?.qkv ?? false }
  const first = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'] as const
  const normed = (b: Block, x: Tensor, name: string) =>
    b.rmsNormHeads(x, norms?.row ? x.width : headDim, name, epsilon)

  return {
    widest: qSize,
    rotary:
      variant.rotary ??
      rotaryPositions(c, rotaryDimensions(c, headDim, variant.partialRotary), variant.usualTheta),
    first: [...first],
    linears: [
      { name: first[0], rows: qSize, ...qkv },
      { name: first[1], rows: kvSize, ...qkv },
      { name: first[2], rows: kvSize, ...qkv },
      { name: 'self_attn.o_proj', rows: hidden, columns: qSize, bias: bias?.output ?? false },
    ],
    parameters: [
      ...(norms
        ? [norm(names[0]!, norms.row ? qSize : headDim), norm(names[1]!, norms.row ? kvSize : headDim)]
        : []),
      ...(sinks === undefined ? [] : [{ name: sinks, shape: [heads] }]),
    ],

    *rest(b, [q, k, v]) {
      const rotated = [q!, k!] as const
      const normAll = () => rotated.forEach((x, i) => normed(b, x, names[i]!))
      if (norms && !norms.afterRotary) normAll()
      if (variant.rotates?.(b.index) ?? true) for (const x of rotated) b.rotary(x, headDim, interleaved)
      if (norms?.afterRotary) normAll()
      const attended = b.attention(q!, k!, v!, {
        heads,
        kvHeads,
        headDim,
        scale: variant.attentionScale ?? headDim ** -0.5,
        softcap: variant.attentionSoftcap,
        sinks,
      })
      return yield* b.linear(attended, 'self_attn.o_proj')
    },
  }
}
