import * as z from 'zod'
import { SparseGptError } from '../errors.js'

/** The rotary entries of config.json: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5. */
export const rotaryConfig = z.object({
  rope_theta: z.number().positive().optional(),
  rope_scaling: z.record(z.string(), z.unknown()).nullish(),
  rope_parameters: z.record(z.string(), z.unknown()).nullish(),
})

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
])

/**
 * The angular frequency of each rotated pair, float32 [dimensions / 2], computed in float32 steps as transformers does.
 * Throws UNSUPPORTED_MODEL for a scaling other than default, linear and llama3.
 */
export function rotaryFrequencies(config: z.output<typeof rotaryConfig>, dimensions: number): Float32Array {
  const given = config.rope_parameters ?? config.rope_scaling ?? {}
  const type = given.rope_type ?? given.type ?? 'default'
  const parsed = scalings.safeParse({ ...given, rope_type: type })
  if (!parsed.success) {
    const message = `config.json: rope scaling ${JSON.stringify(given)} is not supported; default, linear and llama3 are`
    throw new SparseGptError('UNSUPPORTED_MODEL', message)
  }
  const scaling = parsed.data
  const theta = typeof given.rope_theta === 'number' ? given.rope_theta : (config.rope_theta ?? 10000)
  return Float32Array.from({ length: dimensions / 2 }, (_, i) => {
    const frequency = Math.fround(1 / Math.fround(theta ** Math.fround((2 * i) / dimensions)))
    if (scaling.rope_type === 'linear') return frequency / scaling.factor
    if (scaling.rope_type === 'default') return frequency
    // Long waves are stretched by `factor`, short ones kept, those between blended.
    const { factor, low_freq_factor: low, high_freq_factor: high } = scaling
    const turns = (scaling.original_max_position_embeddings * frequency) / (2 * Math.PI)
    if (turns < low) return frequency / factor
    if (turns > high) return frequency
    const smooth = (turns - low) / (high - low)
    return ((1 - smooth) * frequency) / factor + smooth * frequency
  })
}

/** cos and sin of position · frequency, each float32 [sequence, pairs]. */
export function rotaryAngles(frequencies: Float32Array, sequence: number) {
  const pairs = frequencies.length
  const cosine = new Float32Array(sequence * pairs)
  const sine = new Float32Array(sequence * pairs)
  for (let t = 0; t < sequence; t++) {
    frequencies.forEach((frequency, i) => {
      const angle = Math.fround(t * frequency)
      cosine[t * pairs + i] = Math.cos(angle)
      sine[t * pairs + i] = Math.sin(angle)
    })
  }
  return { cosine, sine }
}
