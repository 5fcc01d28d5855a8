import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { quoted } from '../quoted.js'

/** Rotary position embedding: pair i of a head turns by position · frequency i. */
export interface Rotary {
  /** The angular frequency of each pair, float32 [pairs], when sequences of this many tokens are run; always the same arrays. */
  frequencies(sequence: number): Float32Array
  /** The factor of cos and sin. */
  scale: number
}

const ropeParameters = z.looseObject({
  rope_theta: z.number().positive().nullish(),
  partial_rotary_factor: z.number().positive().max(1).nullish(),
})

/**
 * The rotary entries of config.json: `rope_theta`, `rope_scaling` and `partial_rotary_factor` of transformers 4, which 5 has
 * in `rope_parameters`.
 */
export const rotaryConfig = z.object({
  rope_theta: z.number().positive().optional(),
  rope_scaling: ropeParameters.nullish(),
  rope_parameters: ropeParameters.nullish(),
  partial_rotary_factor: z.number().positive().max(1).optional(),
  max_position_embeddings: z.int().min(1).default(2048),
  original_max_position_embeddings: z.int().min(1).optional(),
})
export type RotaryConfig = z.output<typeof rotaryConfig>

const factors = z.array(z.number().positive())
const scalings = z.discriminatedUnion('rope_type', [
  z.object({ rope_type: z.literal('default') }),
  z.object({ rope_type: z.literal('linear'), factor: z.number().positive() }),
  z.object({
    rope_type: z.literal('llama3'),
    factor: z.number().positive(),
    low_freq_factor: z.number().positive(),
    high_freq_factor: z.number().positive(),
    original_max_position_embeddings: z.number().positive(),
  }),
  // Beyond max_position_embeddings, which is the model's context here, the frequencies would depend on the length.
  z.object({ rope_type: z.literal('dynamic'), factor: z.number().positive() }),
  // YaRN (arXiv 2309.00071).
  z.object({
    rope_type: z.literal('yarn'),
    factor: z.number().positive().nullish(),
    original_max_position_embeddings: z.number().positive().nullish(),
    attention_factor: z.number().positive().nullish(),
    mscale: z.number().nullish(),
    mscale_all_dim: z.number().nullish(),
    beta_fast: z.number().positive().nullish(),
    beta_slow: z.number().positive().nullish(),
    truncate: z.boolean().default(true),
  }),
  // LongRoPE (arXiv 2402.13753), first called 'su'.
  z.object({
    rope_type: z.enum(['longrope', 'su']),
    short_factor: factors,
    long_factor: factors,
    original_max_position_embeddings: z.number().positive(),
    factor: z.number().positive().nullish(),
    attention_factor: z.number().positive().nullish(),
  }),
])

/** How many of a head's dimensions are rotated, when the config may say that only a part is. */
export function rotaryDimensions(config: RotaryConfig, headDim: number, usual = 1): number {
  const given = config.rope_parameters?.partial_rotary_factor ?? config.rope_scaling?.partial_rotary_factor
  return Math.trunc(headDim * (given ?? config.partial_rotary_factor ?? usual))
}

/** Throws UNSUPPORTED_MODEL when a part of each head is to be rotated, in families that rotate all of it. */
export function checkWholeHeads(config: RotaryConfig, headDim: number): void {
  const dimensions = rotaryDimensions(config, headDim)
  if (dimensions === headDim) return
  const message = `config.json: partial_rotary_factor (${dimensions} of ${headDim} dimensions) is not supported for this model_type; it must be 1`
  throw new SparseGptError('UNSUPPORTED_MODEL', message)
}

/**
 * θ^(-2i / dimensions), float32 [dimensions / 2], in float32 steps as transformers computes it.
 * Throws INVALID_CHECKPOINT when the dimensions are no pairs.
 */
export function rotaryFrequencies(theta: number, dimensions: number): Float32Array {
  if (dimensions < 2 || dimensions % 2 !== 0) {
    const message = `config.json: ${dimensions} rotary dimensions per head; an even number >= 2 is needed`
    throw new SparseGptError('INVALID_CHECKPOINT', message)
  }
  return Float32Array.from({ length: dimensions / 2 }, (_, i) => {
    return 1 / Math.fround(theta ** Math.fround((2 * i) / dimensions))
  })
}

/**
 * Rotary positions as config.json has them, of `dimensions` dimensions of every head.
 * Throws UNSUPPORTED_MODEL for a scaling other than default, linear, llama3, yarn, dynamic and longrope.
 */
export function rotaryPositions(config: RotaryConfig, dimensions: number, usualTheta = 10000): Rotary {
  const given = config.rope_parameters ?? config.rope_scaling ?? {}
  // Parameters by kind of layer, or more scales: what they would change must not be passed over.
  const foreign = Object.entries(given).find(
    ([entry, value]) =>
      (typeof value === 'object' && value !== null && !Array.isArray(value)) ||
      (entry === 'llama_4_scaling_beta' && value !== null),
  )
  if (foreign) {
    const message = `config.json: the rope parameter ${foreign[0]} ${quoted(foreign[1])} is not supported for this model_type`
    throw new SparseGptError('UNSUPPORTED_MODEL', message)
  }
  const parsed = scalings.safeParse({
    original_max_position_embeddings: config.original_max_position_embeddings,
    ...given,
    rope_type: given.rope_type ?? given.type ?? 'default',
  })
  if (!parsed.success) {
    const message = `config.json: rope scaling ${quoted(given)} is not supported; default, linear, llama3, yarn, dynamic and longrope are`
    throw new SparseGptError('UNSUPPORTED_MODEL', message)
  }
  const scaling = parsed.data
  const theta = given.rope_theta ?? config.rope_theta ?? usualTheta
  const unscaled = rotaryFrequencies(theta, dimensions)
  switch (scaling.rope_type) {
    case 'default':
    case 'dynamic':
      return fixed(unscaled)
    case 'linear':
      return fixed(unscaled.map((frequency) => frequency / scaling.factor))
    case 'llama3':
      // Long waves are stretched by `factor`, short ones kept, those between blended.
      return fixed(
        unscaled.map((frequency) => {
          const { factor, low_freq_factor: low, high_freq_factor: high } = scaling
          const turns = (scaling.original_max_position_embeddings * frequency) / (2 * Math.PI)
          if (turns < low) return frequency / factor
          if (turns > high) return frequency
          const smooth = (turns - low) / (high - low)
          return ((1 - smooth) * frequency) / factor + smooth * frequency
        }),
      )
    case 'yarn':
      return yarn(scaling, theta, unscaled, config.max_position_embeddings)
    case 'longrope':
    case 'su': {
      const original = scaling.original_max_position_embeddings
      const stretched = [scaling.short_factor, scaling.long_factor].map((list) => {
        if (list.length === unscaled.length) return unscaled.map((frequency, i) => frequency / list[i]!)
        const message = `config.json: the rope factors are ${list.length} numbers, expected ${unscaled.length}`
        throw new SparseGptError('INVALID_CHECKPOINT', message)
      }) as [Float32Array, Float32Array]
      const factor = scaling.factor ?? config.max_position_embeddings / original
      const usual = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original))
      return {
        frequencies: (sequence) => stretched[sequence > original ? 1 : 0],
        scale: scaling.attention_factor ?? usual,
      }
    }
  }
}

type Yarn = Extract<z.output<typeof scalings>, { rope_type: 'yarn' }>

/** YaRN's factor of the scores' logarithm: 0.1 · mscale · ln(scale) + 1 where the context is stretched. */
export function yarnScale(factor: number, mscale = 1): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1
}

/** Dimensions that turn often keep their frequencies, those that turn seldom are stretched, those between are blended. */
function yarn(scaling: Yarn, theta: number, unscaled: Float32Array, longest: number): Rotary {
  const { mscale, mscale_all_dim: allDim } = scaling
  const original = scaling.original_max_position_embeddings ?? longest
  const factor = scaling.factor ?? longest / original
  const dimensions = 2 * unscaled.length
  const turning = (times: number) =>
    (dimensions * Math.log(original / (times * 2 * Math.PI))) / (2 * Math.log(theta))
  const rounded = (value: number, round: (x: number) => number) => (scaling.truncate ? round(value) : value)
  // `||`: an entry of 0 means that there is none, as in transformers.
  const low = Math.max(rounded(turning(scaling.beta_fast || 32), Math.floor), 0)
  const high = Math.min(rounded(turning(scaling.beta_slow || 1), Math.ceil), dimensions - 1)
  const width = low === high ? 0.001 : high - low
  const frequencies = unscaled.map((frequency, i) => {
    const stretched = Math.min(Math.max((i - low) / width, 0), 1)
    return (frequency / factor) * stretched + frequency * (1 - stretched)
  })
  const usual = mscale && allDim ? yarnScale(factor, mscale) / yarnScale(factor, allDim) : yarnScale(factor)
  return { frequencies: () => frequencies, scale: scaling.attention_factor ?? usual }
}

function fixed(frequencies: Float32Array): Rotary {
  return { frequencies: () => frequencies, scale: 1 }
}

/** Tabulates cos and sin of position · frequency, times the scale, each float32 [sequence, pairs]. `list`: the frequencies. */
export function rotaryAngles(list: Float32Array, scale: number, sequence: number) {
  const shape = [sequence, list.length]
  const cosine = new Float32Array(sequence * list.length)
  const sine = new Float32Array(sequence * list.length)
  for (let t = 0; t < sequence; t++) {
    list.forEach((frequency, i) => {
      const angle = Math.fround(t * frequency)
      cosine[t * list.length + i] = scale * Math.cos(angle)
      sine[t * list.length + i] = scale * Math.sin(angle)
    })
  }
  return { cosine, sine, shape }
}

/** The kinds of attention that config.json has rotary positions of its own for. */
export type LayerType = 'full_attention' | 'sliding_attention'

/**
 * Rotary positions of whole heads, of blocks with a window and of the others. `rope_parameters` may have entries for each kind; else
 * a scaling is that of full attention only. `usualThetas`: what a kind's theta is where its entries do not say.
 */
export function rotaryByType(
  config: RotaryConfig,
  headDim: number,
  usualThetas: Record<LayerType, number>,
): Record<LayerType, Rotary> {
  const of = (type: LayerType): Rotary => {
    const entries = config.rope_parameters?.[type] ?? (type === 'full_attention' ? config.rope_scaling : {})
    const parsed = ropeParameters.safeParse(entries ?? {})
    if (!parsed.success) {
      const message = `config.json: the rope parameters ${quoted(entries)} of ${type} have a wrong entry`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    const kind = { ...config, rope_theta: undefined, rope_parameters: parsed.data }
    checkWholeHeads(kind, headDim)
    return rotaryPositions(kind, headDim, usualThetas[type])
  }
  return { full_attention: of('full_attention'), sliding_attention: of('sliding_attention') }
}
