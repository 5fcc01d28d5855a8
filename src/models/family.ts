import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { activationNames, type Architecture } from './architecture.js'
import type { Weights } from './weights.js'

/** A model family: reads its config.json and says how its models are built. One file each; registry.ts lists them. */
export interface Family {
  /** `model_type` of config.json. */
  modelType: string
  /** `weights` answers which names the checkpoint uses. Throws INVALID_CHECKPOINT and UNSUPPORTED_MODEL. */
  build(config: Record<string, unknown>, weights: Weights): Architecture & { rotaryFrequencies?: Float32Array }
}

export const size = z.int().min(1).max(2 ** 31 - 1)

export const activation = z.string().transform((name, context) => {
  const kind = activationNames[name]
  if (kind) return kind
  const known = Object.keys(activationNames).join(', ')
  context.issues.push({ code: 'custom', input: name, message: `"${name}" is not supported; known are ${known}` })
  return z.NEVER
})

/** Parses config.json with a family's schema; throws INVALID_CHECKPOINT that names the entries that are wrong. */
export function parseConfig<Schema extends z.ZodType>(schema: Schema, config: unknown): z.output<Schema> {
  const result = schema.safeParse(config)
  if (result.success) return result.data
  const problems = result.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`)
  throw new SparseGptError('INVALID_CHECKPOINT', `config.json: ${problems.join('; ')}`)
}

/** Heads must divide the hidden size, and key/value heads the heads. */
export function checkHeads(hidden: number, heads: number, kvHeads: number, headDim?: number): void {
  if ((headDim === undefined && hidden % heads !== 0) || heads % kvHeads !== 0) {
    const message = `config.json: ${heads} heads with ${kvHeads} key/value heads do not divide the hidden size ${hidden}`
    throw new SparseGptError('INVALID_CHECKPOINT', message)
  }
}
