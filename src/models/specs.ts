/** A linear layer of a block. */
export interface LinearSpec {
  /** The checkpoint name without '.weight', below the block's prefix: 'self_attn.q_proj'. */
  name: string
  /** The number of output features. */
  rows: number
  /** The number of input features. */
  columns: number
  bias: boolean
  /** How the checkpoint stores the matrix; 'in-out' is the transposed layout of GPT-2's Conv1D. Default 'out-in'. */
  layout?: 'out-in' | 'in-out'
}

/** A parameter that is used in float32. */
export interface ParameterSpec {
  /** The checkpoint name below the block's prefix: 'input_layernorm.weight'. */
  name: string
  shape: readonly number[]
  /** What the checkpoint stores is the parameter minus this. Default 0. */
  offset?: number
}

/** What a decoder block holds. */
export interface BlockSpec {
  /** The beginning of all its checkpoint names: 'model.layers.3.'. */
  prefix: string
  /** In the order in which the forward pass reads their inputs. */
  linears: LinearSpec[]
  /** What is never pruned: norms, an expert router. */
  parameters: ParameterSpec[]
  /** A query of the block's attention sees its latest `window` keys only, its own among them. Default: all before it. */
  window?: number | undefined
  /** Whether its queries and keys rotate, in models some of whose blocks have no positions. */
  rotates?: boolean
}

/** The linear layers of a block under their checkpoint names, without '.weight'. */
export const namedLinears = ({ prefix, linears }: BlockSpec): LinearSpec[] =>
  linears.map((linear) => ({ ...linear, name: prefix + linear.name }))

/** The checkpoint's tensors of a block, each in the shape that is stored. */
export function* tensorsOf({ prefix, linears, parameters }: BlockSpec): Generator<ParameterSpec> {
  for (const linear of linears) {
    yield { name: `${prefix}${linear.name}.weight`, shape: storedShape(linear) }
    if (linear.bias) yield { name: `${prefix}${linear.name}.bias`, shape: [linear.rows] }
  }
  for (const parameter of parameters) yield { ...parameter, name: prefix + parameter.name }
}

/** The shape of a linear layer's matrix as the checkpoint stores it. */
export function storedShape({ rows, columns, layout }: LinearSpec): number[] {
  return layout === 'in-out' ? [columns, rows] : [rows, columns]
}
