import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import type { Activation, Device, Tensor } from '../native/device.js'
import { quoted } from '../quoted.js'
import type { Architecture } from './architecture.js'
import { checkForwardEntries } from './forward-entries.js'
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
  relu2: 'relu2',
  silu: 'silu',
  swish: 'silu',
}

/** An integer from 1 to `largest`. */
const upTo = (largest: number) => {
  const error = `must be an integer from 1 to ${largest}`
  return z.int({ error }).min(1, { error }).max(largest, { error })
}

/** A width of weights: far above those of any model, low enough that what is made of it in advance stays small. */
export const size = upTo(2 ** 24)

/** The number of blocks. */
export const blockCount = upTo(512)

/** A number of tokens: what a query sees, or what a model has positions for without a table of them. */
export const tokenCount = upTo(2 ** 31 - 1)

const largestHeads = 2 ** 13
const largestHeadDim = 2 ** 13
const mostExperts = 2 ** 15

export const activation = z.string().transform((name, context) => {
  if (Object.hasOwn(activationNames, name)) return activationNames[name]!
  const known = Object.keys(activationNames).join(', ')
  context.issues.push({
    code: 'custom',
    input: name,
    message: `${quoted(name)} is not supported; known are ${known}`,
  })
  return z.NEVER
})

/**
 * Parses config.json with a family's schema. Of an entry that may be missing null means the same, or false where it is true or
 * false. Throws INVALID_CHECKPOINT that names the entries that are wrong; UNSUPPORTED_MODEL for entries that change the forward
 * pass and are not in the schema.
 */
export function parseConfig<Schema extends z.ZodObject>(
  schema: Schema,
  config: Record<string, unknown>,
): z.output<Schema> {
  const given = Object.entries(config).map(([entry, value]): [string, unknown] => {
    // A file may name what every object inherits.
    const field = Object.hasOwn(schema.shape, entry) ? (schema.shape[entry] as z.ZodType) : undefined
    if (value !== null || !field || field.safeParse(null).success) return [entry, value]
    return [entry, field.safeParse(false).success ? false : undefined]
  })
  const result = schema.safeParse(Object.fromEntries(given))
  if (!result.success) {
    const problems = result.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`)
    throw new SparseGptError('INVALID_CHECKPOINT', `config.json: ${problems.join('; ')}`)
  }
  checkForwardEntries(config, Object.keys(schema.shape))
  return result.data
}

/** Throws INVALID_CHECKPOINT unless heads divide the hidden size, and key/value heads the heads, in sizes that models have. */
export function checkHeads(hidden: number, heads: number, kvHeads: number, headDim?: number): void {
  let fault: string | undefined
  if ((headDim === undefined && hidden % heads !== 0) || heads % kvHeads !== 0) {
    fault = `${heads} heads with ${kvHeads} key/value heads do not divide the hidden size ${hidden}`
  } else if (heads > largestHeads) {
    fault = `${heads} heads; at most ${largestHeads} are supported`
  } else if ((headDim ?? hidden / heads) > largestHeadDim) {
    fault = `${headDim ?? hidden / heads} dimensions per head; at most ${largestHeadDim} are supported`
  }
  if (fault !== undefined) throw new SparseGptError('INVALID_CHECKPOINT', `config.json: ${fault}`)
}

/** Throws INVALID_CHECKPOINT unless the number of experts is one that models have, and no more are active than there are. */
export function checkExperts(
  blocks: number,
  experts: number,
  active: number,
  entry = 'num_local_experts',
): void {
  let fault: string | undefined
  if (active > experts) fault = `num_experts_per_tok ${active} exceeds ${entry} ${experts}`
  else if (blocks * experts > mostExperts) {
    fault = `${entry} ${experts} in ${blocks} blocks; at most ${mostExperts} experts in all are supported`
  }
  if (fault !== undefined) throw new SparseGptError('INVALID_CHECKPOINT', `config.json: ${fault}`)
}

export const layerTypes = z.array(z.enum(['full_attention', 'sliding_attention'])).nullish()

/** Which blocks see a window only: by `layer_types`, or as `usual` says where it is missing. Throws INVALID_CHECKPOINT. */
export function slidingBlocks(
  {
    layer_types: types,
    num_hidden_layers: blocks,
  }: { layer_types?: z.output<typeof layerTypes>; num_hidden_layers: number },
  usual: (block: number) => boolean,
): (block: number) => boolean {
  checkLayerTypes(types, blocks)
  return (block) => (types ? types[block] === 'sliding_attention' : usual(block))
}

/** Throws INVALID_CHECKPOINT unless `layer_types`, where it is given, has a kind for every block. */
export function checkLayerTypes(types: readonly unknown[] | null | undefined, blocks: number): void {
  if (!types || types.length === blocks) return
  const message = `config.json: layer_types is for ${types.length} blocks, but num_hidden_layers is ${blocks}`
  throw new SparseGptError('INVALID_CHECKPOINT', message)
}

/** Throws UNSUPPORTED_MODEL, naming the entry of config.json, unless the model is of the kind that is implemented. */
export function checkSupported(supported: boolean, entry: string, value: unknown, what: string): void {
  if (supported) return
  throw new SparseGptError(
    'UNSUPPORTED_MODEL',
    `config.json: ${entry} ${quoted(value)} is not supported; ${what}`,
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

/** A layer norm outside the blocks: x [tokens, size] float32 normalised with the parameters `name`.weight and `name`.bias, each [size]. */
export function outerLayerNorm(
  weights: Weights,
  device: Device,
  x: Tensor,
  norm: { name: string; size: number; epsilon: number },
): Tensor {
  const weight = weights.parameter(`${norm.name}.weight`, [norm.size])
  return device.layerNorm(x, weight, weights.parameter(`${norm.name}.bias`, [norm.size]), norm.epsilon)
}

/**
 * The weight of the output head: the embedding's when they are tied, or when config.json does not say and the checkpoint stores no
 * other.
 */
export function headWeight(
  weights: Weights,
  tied: boolean,
  embedding: string,
  name = 'lm_head.weight',
): string {
  const unsaid = (weights.config['tie_word_embeddings'] ?? undefined) === undefined
  const own = weights.findPrefix([''], name) + name
  return tied || (unsaid && !weights.has(own)) ? embedding : own
}
