import { SparseGptError } from '../../errors.js'

export type BenchDType = 'float32' | 'bfloat16'

/** Something whose time is measured. Plain data, so that another program can be asked for the same. */
export type BenchCase =
  /** A product x Wᵀ: [tokens, inputs] · [inputs, outputs]. */
  | { operation: 'linear'; tokens: number; inputs: number; outputs: number; dtype: BenchDType }
  /** A Gram matrix: Σ x xᵀ over [tokens, columns], the upper triangle. */
  | { operation: 'gram'; tokens: number; columns: number; dtype: BenchDType }
  /** The factorisation of a Hessian and SparseGPT on one matrix, to half of the weights or by a pattern. */
  | {
      operation: 'solver'
      rows: number
      columns: number
      pattern?: { n: number; m: number }
      bits?: number
      dtype: 'float32'
    }
  /** One block of the model that config.json describes, on one window of `tokens` tokens. */
  | {
      operation: 'forward'
      model: string
      config: Record<string, unknown>
      tokens: number
      dtype: BenchDType
    }

export const tables = ['gemm', 'solver', 'forward'] as const
export type BenchTable = (typeof tables)[number]

const defaultSizes: Record<BenchTable, string[]> = {
  gemm: [
    '2048x2048x2048',
    '4096x576x576',
    '4096x576x1536',
    '4096x1536x576',
    '2048x768x3072',
    '2048x3072x768',
    '2048x4096x4096',
    '4096x576',
    '4096x1536',
    '2048x768',
    '2048x4096',
  ],
  solver: ['768x768', '3072x768', '768x3072', '2048x2048', '4096x4096'],
  forward: ['opt-125m', 'llama-1b', 'llama-7b'],
}

/** One block each. Heads, key/value heads and widths are those of OPT-125M, Llama 3.2 1B and LLaMA 7B. */
const models: Record<string, Record<string, unknown>> = {
  'opt-125m': { model_type: 'opt', hidden_size: 768, ffn_dim: 3072, num_attention_heads: 12 },
  'llama-1b': llama({ hidden_size: 2048, intermediate_size: 8192, heads: 32, kvHeads: 8 }),
  'llama-7b': llama({ hidden_size: 4096, intermediate_size: 11008, heads: 32, kvHeads: 32 }),
}

/** Whole models, of random weights. llama-1.1b is TinyLlama's shape, llama-135m SmolLM2's. */
export const decodeModels: Record<string, Record<string, unknown>> = {
  'llama-135m': {
    ...llama({ hidden_size: 576, intermediate_size: 1536, heads: 9, kvHeads: 3 }),
    ...{ num_hidden_layers: 30, vocab_size: 49152, max_position_embeddings: 2048 },
  },
  'llama-1.1b': {
    ...llama({ hidden_size: 2048, intermediate_size: 5632, heads: 32, kvHeads: 4 }),
    ...{ num_hidden_layers: 22, vocab_size: 32000, max_position_embeddings: 2048 },
  },
  'llama-7b': {
    ...models['llama-7b'],
    ...{ num_hidden_layers: 32, vocab_size: 32000, max_position_embeddings: 2048 },
  },
}

function llama({
  heads,
  kvHeads,
  ...sizes
}: Record<'hidden_size' | 'intermediate_size' | 'heads' | 'kvHeads', number>) {
  return { model_type: 'llama', ...sizes, num_attention_heads: heads, num_key_value_heads: kvHeads }
}

/**
 * The cases of a table. `sizes` of gemm are 'tokens x inputs x outputs' for products and 'tokens x columns' for Gram matrices
 * (written 4096x576x1536), of the solver 'rows x columns', of forward names of models. Throws INVALID_OPTION.
 */
export function benchCases(
  table: BenchTable,
  dtypes: readonly BenchDType[],
  tokens: number,
  sizes: readonly string[] = defaultSizes[table],
): BenchCase[] {
  switch (table) {
    case 'gemm':
      return dtypes.flatMap((dtype) => sizes.map((size) => productCase(size, dtype)))
    case 'solver':
      return sizes.flatMap(solverCases)
    case 'forward':
      return dtypes.flatMap((dtype) => sizes.map((size) => forwardCase(size, tokens, dtype)))
  }
}

function productCase(size: string, dtype: BenchDType): BenchCase {
  const numbers = dimensions(size)
  const [tokens, second, outputs] = numbers
  if (tokens === undefined || second === undefined || numbers.length > 3) {
    throw badSize(size, 'a product such as 2048x4096x4096 or a Gram matrix such as 2048x4096')
  }
  return outputs === undefined
    ? { operation: 'gram', tokens, columns: second, dtype }
    : { operation: 'linear', tokens, inputs: second, outputs, dtype }
}

function solverCases(size: string): BenchCase[] {
  const [rows, columns, ...more] = dimensions(size)
  if (rows === undefined || columns === undefined || more.length > 0 || columns % 8 !== 0) {
    throw badSize(size, 'rows x columns such as 4096x11008, with columns that 8 divides')
  }
  const matrix = { operation: 'solver', rows, columns, dtype: 'float32' } as const
  return [
    matrix,
    { ...matrix, pattern: { n: 2, m: 4 } },
    { ...matrix, pattern: { n: 4, m: 8 } },
    { ...matrix, bits: 4 },
  ]
}

function forwardCase(model: string, tokens: number, dtype: BenchDType): BenchCase {
  const shape = models[model]
  if (!shape) throw badSize(model, Object.keys(models).join(', '))
  const config = { ...shape, num_hidden_layers: 1, vocab_size: 256, max_position_embeddings: tokens }
  return { operation: 'forward', model, config, tokens, dtype }
}

function dimensions(size: string): number[] {
  const numbers = size.split('x').map(Number)
  return numbers.every((n) => Number.isInteger(n) && n >= 1 && n <= 131072) ? numbers : []
}

function badSize(size: string, allowed: string): SparseGptError {
  return new SparseGptError('INVALID_OPTION', `bench: option sizes: "${size}" is not ${allowed}`)
}

/** The name of a case in tables. */
export function caseName(c: BenchCase): string {
  switch (c.operation) {
    case 'linear':
      return `product ${c.tokens} × ${c.inputs} × ${c.outputs}`
    case 'gram':
      return `Gram ${c.tokens} × ${c.columns}`
    case 'solver': {
      const goal = c.pattern ? `${c.pattern.n}:${c.pattern.m}` : `50 %${c.bits ? ` + ${c.bits} bit` : ''}`
      return `${c.rows} × ${c.columns}, ${goal}`
    }
    case 'forward':
      return `block of ${c.model}, ${c.tokens} tokens`
  }
}
