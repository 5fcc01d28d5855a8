import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import type { Activation } from '../native/device.js'
import type { Architecture } from './architecture.js'
import type { ParameterSpec } from './specs.js'
import type { Weights } from './weights.js'

/** A model family: reads its config.json and says how its models are built. One file each; registry.ts lists them. */
export interface Family {
  /** The `model_type` of its config.json. */
  modelType: string
  /** Builds a model; `weights` answers which names the checkpoint uses. Throws INVALID_CHECKPOINT and UNSUPPORTED_MODEL. */
  build(config: Record<string, unknown>, weights: Weights): Architecture
}

/** The names that config.json uses for activation functions. */
const activationNames: Record<string, Activation> = {
  relu: 'relu',
  gelu: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  silu: 'silu',
  swish: 'silu',
}

export const size = z
  .int()
  .min(1)
  .max(2 ** 31 - 1)

export const activation = z.string().transform((name, context) => {
  const kind = activationNames[name]
  if (kind) return kind
  const known = Object.keys(activationNames).join(', ')
  context.issues.push({
    code: 'custom',
    input: name,
    message: `"${name}" is not supported; known are ${known}`,
  })
  return z.NEVER
})

/** Parses config.json with a family's schema; throws INVALID_CHECKPOINT that names the entries that are wrong. */
export function parseConfig<Schema extends z.ZodType>(schema: Schema, config: unknown): z.output<Schema> {
  const result = schema.safeParse(config)
  if (result.success) return result.data
  const problems = result.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`)
  throw new SparseGptError('INVALID_CHECKPOINT', `config.json: ${problems.join('; ')}`)
}

/** Throws INVALID_CHECKPOINT unless heads divide the hidden size, and key/value heads the heads. */
export function checkHeads(hidden: number, heads: number, kvHeads: number, headDim?: number): void {
  if ((headDim === undefined && hidden % heads !== 0) || heads % kvHeads !== 0) {
    const message = `config.json: ${heads} heads with ${kvHeads} key/value heads do not divide the hidden size ${hidden}`
    throw new SparseGptError('INVALID_CHECKPOINT', message)
  }
}

/** Throws UNSUPPORTED_MODEL, naming the entry of config.json, unless the model is of the kind that is implemented. */
export function checkSupported(supported: boolean, entry: string, value: unknown, what: string): void {
  if (supported) return
  throw new SparseGptError(
    'UNSUPPORTED_MODEL',
    `config.json: ${entry} ${JSON.stringify(value)} is not supported; ${what}`,
  )
}

/** The config with the names that older versions of a family used replaced by today's. */
export function renamed(
  config: Record<string, unknown>,
  names: Record<string, string>,
): Record<string, unknown> {
  const result = { ...config }
  for (const [old, name] of Object.entries(names)) result[name] ??= config[old]
  return result
}

/** Weights and biases of layer norms. */
export function layerNorms(size: number, ...names: string[]): ParameterSpec[] {
  return names.flatMap((name) => [
    { name: `${name}.weight`, shape: [size] },
    { name: `${name}.bias`, shape: [size] },
  ])
}

/** The weight of the output head: the embedding's when they are tied, or when the checkpoint stores no other. */
export function headWeight(
  weights: Weights,
  tied: boolean,
  embedding: string,
  name = 'lm_head.weight',
): string {
  return tied || !weights.has(name) ? embedding : name
}
