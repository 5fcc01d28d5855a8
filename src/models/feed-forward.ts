import type { Activation, Tensor } from '../native/device.js'
import type { Block } from './block.js'
import type { Routing } from './routing.js'
import type { LinearSpec, ParameterSpec } from './specs.js'
import type { Steps } from './steps.js'

/** The second half of a block. */
export interface FeedForward {
  linears: LinearSpec[]
  parameters: ParameterSpec[]
  /** Computes, from the normed residual stream, which it consumes, what is added to the stream. */
  forward(block: Block, x: Tensor): Steps<Tensor>
}

/** One that may share its input with the attention. */
export interface Mlp extends FeedForward {
  /** The linears that read the input. */
  first: string[]
  /** Goes on from their outputs. */
  rest(block: Block, outputs: Tensor[]): Steps<Tensor>
}

interface Sizes {
  hidden: number
  inner: number
  activation: Activation
  bias?: boolean
  /** The beginning of the linears' names. Default 'mlp.'. */
  prefix?: string
}

/** down(f(gate(x)) · up(x)), from linears of these names. */
export function gatedMlp({ hidden, inner, activation, bias = false, prefix = 'mlp.' }: Sizes): Mlp {
  const [gate, up, down] = ['gate_proj', 'up_proj', 'down_proj'].map((name) => prefix + name)
  return mlp(
    [gate!, up!],
    [
      { name: gate!, rows: inner, columns: hidden, bias },
      { name: up!, rows: inner, columns: hidden, bias },
      { name: down!, rows: hidden, columns: inner, bias },
    ],
    (b, outputs) => b.linear(b.gated(outputs[0]!, outputs[1]!, activation), down!),
  )
}

/** The same with gate and up in one matrix, one after the other. */
export function fusedMlp({ hidden, inner, activation }: Sizes): Mlp {
  return mlp(
    ['mlp.gate_up_proj'],
    [
      { name: 'mlp.gate_up_proj', rows: 2 * inner, columns: hidden, bias: false },
      { name: 'mlp.down_proj', rows: hidden, columns: inner, bias: false },
    ],
    function* (b, outputs) {
      const [gate, up] = b.splitColumns(outputs[0]!, inner, inner)
      return yield* b.linear(b.gated(gate!, up!, activation), 'mlp.down_proj')
    },
  )
}

/** second(f(first(x))), from linears of the names given. */
export function plainMlp(
  { hidden, inner, activation, bias = false }: Sizes,
  first: string,
  second: string,
): Mlp {
  return mlp(
    [first],
    [
      { name: first, rows: inner, columns: hidden, bias },
      { name: second, rows: hidden, columns: inner, bias },
    ],
    (b, outputs) => b.linear(b.activation(outputs[0]!, activation), second),
  )
}

function mlp(first: string[], linears: LinearSpec[], rest: Mlp['rest']): Mlp {
  return {
    linears,
    parameters: [],
    first,
    rest,
    *forward(b, x) {
      return yield* rest(b, yield* b.linears(x, ...first))
    },
  }
}

/** Several MLPs of which a router picks some for each token. */
export interface Experts {
  routing: Routing
  hidden: number
  inner: number
  activation: Activation
  /** The name of the router's matrix, [experts, hidden], without '.weight'. */
  router: string
  /** Whether the router has a bias, [experts]. */
  routerBias?: boolean
  /** The parameter, [experts], by which some experts are preferred to others: see Block.route. */
  preference?: string
  /** An expert's linears: those that read its input, and the one behind the gate. */
  names: (expert: number) => { first: string[]; down: string }
  /** How gate and up lie in the columns of one linear, where `first` is that: halves, or by turns. Default: they are two. */
  gateUp?: 'halves' | 'by turns'
  /** How the linears are stored. Default: as matrices [out, in], without a bias. */
  stored?: Pick<LinearSpec, 'bias' | 'layout'>
  /** What takes the place of f(gate) · up; consumes both. */
  gate?: (block: Block, gate: Tensor, up: Tensor) => Tensor
  /** An MLP that every token goes through besides; with the matrix `gate`, [1, hidden], times the sigmoid of its product. */
  shared?: { mlp: FeedForward; gate?: string } | undefined
}

/**
 * Each expert runs on the tokens that are routed to it, so it is calibrated on them, too. The router is a parameter, not a
 * linear layer: it is tiny, and pruning it would change which expert sees which token, for which no weight update makes up.
 */
export function experts(e: Experts): FeedForward {
  const { routing, hidden, inner, shared, stored = { bias: false } } = e
  const names = Array.from({ length: routing.experts }, (_, expert) => e.names(expert))
  const gated = e.gate ?? ((b: Block, gate: Tensor, up: Tensor) => b.gated(gate, up, e.activation))
  const split = (b: Block, outputs: Tensor[]) =>
    e.gateUp === undefined
      ? outputs
      : e.gateUp === 'halves'
        ? b.splitColumns(outputs[0]!, inner, inner)
        : b.splitGroups(outputs[0]!, inner, 1, 1)
  return {
    linears: [
      ...names.flatMap(({ first, down }) => [
        ...first.map((name) => ({ name, rows: (2 * inner) / first.length, columns: hidden, ...stored })),
        { name: down, rows: hidden, columns: inner, ...stored },
      ]),
      ...(shared?.mlp.linears ?? []),
    ],
    parameters: [
      { name: `${e.router}.weight`, shape: [routing.experts, hidden] },
      ...(e.routerBias ? [{ name: `${e.router}.bias`, shape: [routing.experts] }] : []),
      ...(e.preference === undefined ? [] : [{ name: e.preference, shape: [routing.experts] }]),
      ...(shared?.gate === undefined ? [] : [{ name: `${shared.gate}.weight`, shape: [1, hidden] }]),
    ],

    *forward(b, x) {
      const loads = yield* b.route(b.product(x, e.router), routing, e.preference)
      const sums = b.zeros(x.rows, hidden)
      for (const [expert, { tokens, shares }] of loads.entries()) {
        // Experts without tokens take part, with inputs of no rows: every batch goes through the same groups.
        const { first, down } = names[expert]!
        const inputs = b.rows(x, tokens)
        const [gate, up] = split(b, yield* b.pooledLinears('experts, first', inputs, ...first))
        const [output] = yield* b.pooledLinears('experts, down', gated(b, gate!, up!), down)
        b.addRows(sums, output!, tokens, shares)
      }
      const { dtype } = x
      if (!shared) {
        b.drop(x)
        return b.cast(sums, dtype)
      }
      if (shared.gate === undefined) {
        const output = yield* shared.mlp.forward(b, x)
        const routed = b.cast(sums, dtype)
        const sum = b.residual(routed, output)
        b.drop(routed)
        return sum
      }
      const [all] = yield* b.route(b.product(x, shared.gate), { experts: 1, active: 1, shares: 'sigmoid' })
      const output = yield* shared.mlp.forward(b, x)
      b.addRows(sums, output, all!.tokens, all!.shares)
      return b.cast(sums, dtype)
    },
  }
}

/** The names of experts' gate, up and down as matrices of their own, below `prefix` and the expert's number. */
export const expertNames =
  (
    prefix: string,
    [gate, up, down]: [gate: string, up: string, down: string] = ['gate_proj', 'up_proj', 'down_proj'],
  ) =>
  (expert: number) => ({
    first: [`${prefix}${expert}.${gate}`, `${prefix}${expert}.${up}`],
    down: `${prefix}${expert}.${down}`,
  })
