import type { Activation, DType } from './addon.js'
import type { Tensor } from './tensor.js'

/**
 * The operation table: every operation of a device, declared once. An entry turns the arguments of a call into what the native
 * side is handed (native/core/operations.h declares the same names there) and into what the call makes, changes, reads and
 * costs. `Device` has a method for every entry; `plan`'s device, the profile's phases, progress and the benchmark's counts
 * follow from the entries.
 */

/** What a device's time is spent on. */
export type Phase =
  'forward' | 'gradient' | 'statistics' | 'factor' | 'solve' | 'convert' | 'communicate' | 'write'

/** The kinds of arithmetic that are counted. */
export type Arithmetic = 'linear' | 'attention' | 'gram' | 'factor' | 'solve'

/** What memory is used for; the float32 copy of a matrix that is solved counts as weights, the solver's is the rest. */
export type MemoryPart = 'weights' | 'activations' | 'gram' | 'solver'

/** A tensor to be made. */
export interface TensorSpec {
  dtype: DType
  shape: readonly number[]
}

/** One call of an operation. Operands and settings are named as in native/core/operations.h, but with `headDim` for `head_dim`. */
export interface Call {
  /** The results: new tensors, or given ones, whose elements are all written. One that is read, too, is overwritten in place. */
  make?: Record<string, Tensor | TensorSpec>
  /** The operands that are overwritten with a function of what they hold. */
  change?: Record<string, Tensor>
  /** The operands that stay as they are. */
  read?: Record<string, Tensor | undefined>
  settings?: Record<string, number | boolean | string>
  /** The number of floating-point operations; a multiply-add is two. */
  flop?: number
  /** How many rows are read of an operand, where it is not all of them. */
  rowsRead?: Record<string, number>
  /** By how much a setting grows, or by how many elements an operand moves, whenever the call is carried out once more: see Recording. */
  advance?: Record<string, number>
}

export interface Operation<Arguments extends unknown[] = never[], C extends Call = Call> {
  phase: Phase
  /** What its floating-point operations are counted as. */
  arithmetic?: Arithmetic
  /** What the memory of its operands is used for from then on. What a conversion makes is used as what it was made of. */
  parts?: Record<string, MemoryPart>
  call: (...args: Arguments) => C
}

function operation<Arguments extends unknown[], C extends Call>(
  phase: Phase,
  call: (...args: Arguments) => C,
  rest: Pick<Operation, 'arithmetic' | 'parts'> = {},
): Operation<Arguments, C> {
  return { phase, call, ...rest }
}

const matrix = ({ rows, width }: Tensor) => [rows, width] as const
const like = ({ dtype, shape }: Tensor): TensorSpec => ({ dtype, shape })
const float32 = (...shape: number[]): TensorSpec => ({ dtype: 'float32', shape })
const float64 = (...shape: number[]): TensorSpec => ({ dtype: 'float64', shape })
const uint8 = (...shape: number[]): TensorSpec => ({ dtype: 'uint8', shape })

/** Which weights a solver removes: with a pattern n of every m neighbours in a row, else trunc(count · sparsity). */
export interface Choice {
  sparsity?: number | undefined
  pattern?: { n: number; m: number } | undefined
}

const choiceSettings = ({ sparsity, pattern }: Choice) => ({
  sparsity: sparsity ?? 0,
  n: pattern?.n ?? 0,
  m: pattern?.m ?? 0,
})

/** Causal attention. */
export interface AttentionShape {
  /** The number of independent sequences that lie one after another, in q as in k and v. */
  sequences: number
  /** The key at which the first query of a sequence stands: it sees that one and those before it. Default 0. */
  start?: number | undefined
  heads: number
  /** The number of key/value heads, which divides `heads`: query head h reads key/value head h / (heads / kvHeads). */
  kvHeads: number
  headDim: number
  /** The factor of the scores q · k. */
  scale: number
  /** A query sees its latest `window` keys only, its own among them. Default: all before it. */
  window?: number | undefined
  /** A scaled score s becomes softcap · tanh(s / softcap). */
  softcap?: number | undefined
  /** The ALiBi slopes, float32 [heads]: slope · (key position - query position) is added to the score. */
  slopes?: Tensor | undefined
  /** Float32 [heads]: the score of one more key that every query sees, whose value is zero. */
  sinks?: Tensor | undefined
}

/** How kept weights are rounded. */
export interface Rounding {
  /** The number of bits of a code. */
  bits: number
  /** The number of neighbours in a row that share a grid; default: the whole row. */
  groupSize?: number | undefined
  /** Whether the grid reaches as far below zero as above it; else from the smallest weight, or zero, to the largest. */
  symmetric: boolean
  /** Whether a part of the weights' range is taken if it has the least squared error. */
  clip: boolean
  /** The type that the grid's steps are rounded to. */
  stepType: 'float32' | 'bfloat16' | 'float16'
}

/** What strips hold of a matrix. */
export interface StripForm {
  /** 16 for bfloat16 elements, 8 or 4 for codes of that many bits. */
  bits: 16 | 8 | 4
  /** Whether only what is not zero is there, and a bit for every element. */
  masked: boolean
  /** The number of neighbours in a row that share a scale and a zero: a multiple of 32, or the whole row. Of no matter with 16 bits. */
  group: number
  /** Whether scales are kept as bfloat16, else as float32. */
  halfScales: boolean
}

/** A matrix that becomes strips: bfloat16 elements, or uint8 codes with their grids. */
export interface StripSource {
  x: Tensor
  /** The zeros, uint8, and the scales, of a float type: [rows, groups]. */
  grid?: { zeros: Tensor; scales: Tensor } | undefined
}

/** Sixteen rows form a strip. */
const stripRows = 16

/** The grids of a matrix. */
function gridsOf(weight: Tensor, { groupSize = weight.width, stepType }: Rounding) {
  const shape = [weight.rows, weight.width / groupSize]
  return { steps: { dtype: stepType, shape }, zeros: float32(...shape) }
}

/** The query/key pairs of one sequence that causality and the window leave. */
function attentionPairs(queries: number, start: number, window: number): number {
  const seen = (t: number) => (window > 0 ? Math.min(window, start + t + 1) : start + t + 1)
  // The number of keys grows by one with every query until the window is full.
  const growing = window > 0 ? Math.min(queries, Math.max(0, window - start)) : queries
  return (growing * (seen(0) + seen(growing - 1))) / 2 + (queries - growing) * window
}

export const operations = {
  // --- moving and converting ---

  /** Converts between float types. */
  cast: operation('convert', (input: Tensor, dtype: DType, out?: Tensor) => ({
    make: { out: out ?? { dtype, shape: input.shape } },
    read: { in: input },
  })),

  /** Transposes a matrix, between float types or of uint8. */
  transpose: operation('convert', (input: Tensor, dtype: DType, out?: Tensor) => ({
    make: { out: out ?? { dtype, shape: [input.width, input.rows] } },
    read: { in: input },
  })),

  /** Sets every element of a float32 or float64 tensor. */
  fill: operation('convert', (out: Tensor, value: number) => ({ make: { out }, settings: { value } })),

  /** Writes the tensor's bytes to an open file; a failure (WRITE_FAILED) shows at the next synchronisation. */
  writeFile: operation('write', (fd: number, position: number, tensor: Tensor) => ({
    read: { tensor },
    settings: { fd, position },
  })),

  /** The seconds of the device's clock when what was enqueued before has run, float64 [1], for differences. */
  timestamp: operation('solve', () => ({ make: { out: float64(1) } }), { parts: { out: 'solver' } }),

  // --- forward ---

  /** The rows of `table` that `ids` (int32) names, [ids, columns of table]. */
  embedding: operation('forward', (table: Tensor, ids: Tensor, dtype: DType) => ({
    make: { out: { dtype, shape: [ids.width, table.width] } },
    read: { table, ids },
    rowsRead: { table: ids.width },
  })),

  /** A linear layer, x Wᵀ + b: x [tokens, in], weight [out, in], bias [out]; [tokens, out]. */
  linear: operation(
    'forward',
    (x: Tensor, weight: Tensor, bias?: Tensor, dtype: DType = x.dtype) => ({
      make: { out: { dtype, shape: [x.rows, weight.rows] } },
      read: { x, weight, bias },
      flop: 2 * x.rows * weight.rows * weight.width,
    }),
    { arithmetic: 'linear', parts: { weight: 'weights' } },
  ),

  /** The layer norm of every row; `out` may be x. */
  layerNorm: operation(
    'forward',
    (x: Tensor, weight: Tensor, bias: Tensor, epsilon: number, out?: Tensor) => ({
      make: { out: out ?? like(x) },
      read: { x, weight, bias },
      settings: { epsilon },
    }),
  ),

  /** The root-mean-square norm of every row; `out` may be x. */
  rmsNorm: operation('forward', (x: Tensor, weight: Tensor, epsilon: number, out?: Tensor) => ({
    make: { out: out ?? like(x) },
    read: { x, weight },
    settings: { epsilon },
  })),

  /**
   * Rotates the heads of every row of x by the angles of its position: `positions` int32 [rows of x], cosine and sine float32
   * [positions, pairs]. Pairs are (i, i + pairs), or (2i, 2i + 1) when interleaved.
   */
  rotary: operation(
    'forward',
    (
      x: Tensor,
      tables: { cosine: Tensor; sine: Tensor },
      positions: Tensor,
      headDim: number,
      interleaved: boolean = false,
    ) => ({
      change: { x },
      read: { ...tables, positions },
      settings: { headDim, interleaved },
    }),
  ),

  /** Causal attention: q [queries, heads · headDim], k and v [keys, kvHeads · headDim]; [queries, heads · headDim]. */
  attention: operation(
    'forward',
    (
      q: Tensor,
      k: Tensor,
      v: Tensor,
      { slopes, sinks, start = 0, window = 0, softcap = 0, ...shape }: AttentionShape,
    ) => ({
      make: { out: { dtype: q.dtype, shape: matrix(q) } },
      read: { q, k, v, slopes, sinks },
      settings: { ...shape, start, window, softcap },
      flop: 4 * q.width * shape.sequences * attentionPairs(q.rows / shape.sequences, start, window),
    }),
    { arithmetic: 'attention' },
  ),

  /** Applies an activation function: x = f(x). */
  activate: operation('forward', (x: Tensor, kind: Activation) => ({ change: { x }, settings: { kind } })),

  /** Gates: x = f(x) · up. */
  gate: operation('forward', (x: Tensor, up: Tensor, kind: Activation) => ({
    change: { x },
    read: { up },
    settings: { kind },
  })),

  /** Adds: x += y. */
  add: operation('forward', (x: Tensor, y: Tensor) => ({ change: { x }, read: { y } })),

  /** Multiplies: x *= factor. */
  scale: operation('forward', (x: Tensor, factor: number) => ({ change: { x }, settings: { factor } })),

  /** Caps softly: x = cap · tanh(x / cap). */
  softcap: operation('forward', (x: Tensor, cap: number) => ({ change: { x }, settings: { cap } })),

  /**
   * One part of a fused projection, [tokens, groups · count]: columns [g · stride + first, g · stride + first + count) of x
   * for each group g.
   */
  takeColumns: operation(
    'forward',
    (x: Tensor, { groups, ...part }: { groups: number; first: number; count: number; stride: number }) => ({
      make: { out: { dtype: x.dtype, shape: [x.rows, groups * part.count] } },
      read: { x },
      settings: part,
    }),
  ),

  /** Adds rows: out[ids[t]] += factors[t] · x[t]; no id occurs twice. ids int32, factors float32, [rows of x]. */
  scatterAdd: operation('forward', (out: Tensor, x: Tensor, ids: Tensor, factors: Tensor) => ({
    change: { out },
    read: { x, ids, factors },
  })),

  /**
   * The loss of predicting targets[t] from x[t], float32 [tokens]. The logits are those of `head`, [vocabulary, columns of x],
   * and its bias, [vocabulary], then capped as softcap() does. `likeliest`, int32 [tokens], takes the token of the largest logit.
   */
  crossEntropy: operation(
    'forward',
    (
      x: Tensor,
      head: Tensor,
      targets: Tensor,
      {
        bias,
        softcap = 0,
        likeliest,
      }: { bias?: Tensor | undefined; softcap?: number | undefined; likeliest?: Tensor | undefined } = {},
    ) => ({
      make: { losses: float32(x.rows) },
      ...(likeliest && { change: { likeliest } }),
      read: { x, head, bias, targets },
      settings: { softcap },
      flop: 2 * x.rows * head.rows * head.width,
    }),
    { arithmetic: 'linear', parts: { head: 'weights' } },
  ),

  // --- calibration ---

  /** Adds to a Gram matrix: gram += scale · xᵀ x (upper triangle); gram float32 [columns of x, columns of x]. */
  accumulateGram: operation(
    'statistics',
    (gram: Tensor, x: Tensor, scale: number) => ({
      change: { gram },
      read: { x },
      settings: { scale },
      flop: x.rows * x.width * (x.width + 1),
    }),
    { arithmetic: 'gram', parts: { gram: 'gram' } },
  ),

  /** Adds squares: sums += scale · Σ_t x[t]²; sums float32 [columns of x]. */
  accumulateSquares: operation(
    'statistics',
    (sums: Tensor, x: Tensor, scale: number) => ({
      change: { sums },
      read: { x },
      settings: { scale },
      flop: 2 * x.rows * x.width,
    }),
    { arithmetic: 'gram', parts: { sums: 'gram' } },
  ),

  /**
   * Adds a product: sums += scale · xᵀ y; sums float32 [columns of x, columns of y]. Of a linear layer's output gradient and its
   * input: the gradient of its weight.
   */
  accumulateProduct: operation(
    'gradient',
    (sums: Tensor, x: Tensor, y: Tensor, scale: number = 1) => ({
      change: { sums },
      read: { x, y },
      settings: { scale },
      flop: 2 * x.rows * x.width * y.width,
    }),
    { arithmetic: 'linear', parts: { sums: 'gram' } },
  ),

  /**
   * Scales a Gram matrix to a unit diagonal in its upper triangle, and tells the square roots of the diagonal that there was, float32
   * [columns]. Where that is zero, row and column become zero.
   */
  normalizeGram: operation(
    'factor',
    (gram: Tensor) => ({ make: { norms: float32(gram.width) }, change: { gram } }),
    { parts: { gram: 'gram', norms: 'solver' } },
  ),

  /** Multiplies, or divides (`inverse`), each column: x[i, j] *= factors[j]; a quotient by zero is zero. */
  scaleColumns: operation('solve', (x: Tensor, factors: Tensor, { inverse = false } = {}) => ({
    change: { x },
    read: { factors },
    settings: { inverse },
  })),

  // --- pruning ---

  /** Throws NON_FINITE "<subject> has a NaN or infinite entry in row …" (at the next synchronisation); x float32. */
  checkFinite: operation('solve', (x: Tensor, subject: string) => ({ read: { x }, settings: { subject } })),

  /** The scores |weight| · sqrt(squares of the column), float32 [rows, columns], of Wanda (Sun et al. 2023, arXiv 2306.11695). */
  scores: operation(
    'solve',
    (weight: Tensor, squares: Tensor) => ({
      make: { out: float32(...matrix(weight)) },
      read: { weight, squares },
    }),
    { parts: { out: 'solver' } },
  ),

  /**
   * The mask of the smallest scores, uint8 [rows, columns], 1 = prune; signs do not count. By sparsity they are chosen of the
   * whole matrix or `byRow`; `inclusive` also takes the score of the next rank and all that equal it, as the SparseGPT
   * reference does for magnitude.
   */
  selectMask: operation(
    'solve',
    (scores: Tensor, choice: Choice, { byRow = false, inclusive = false } = {}) => ({
      make: { mask: uint8(...matrix(scores)) },
      read: { scores },
      settings: { ...choiceSettings(choice), byRow, inclusive },
    }),
    { parts: { mask: 'solver' } },
  ),

  /** Applies a mask: weight = 0 where the mask is not 0. */
  applyMask: operation('solve', (weight: Tensor, mask: Tensor) => ({ change: { weight }, read: { mask } })),

  /** The mask of the zeros, uint8 [rows, columns]: 1 where x is zero. */
  markZeros: operation('solve', (x: Tensor) => ({ make: { mask: uint8(...matrix(x)) }, read: { x } }), {
    parts: { mask: 'solver' },
  }),

  /**
   * Factors the damped Hessian H = R Rᵀ in its place, R upper triangular. `dead`: uint8 [columns], 1 where H_jj is 0. `report`:
   * float64, the dampening used, how often it was raised, the number of dead columns.
   */
  factorHessian: operation(
    'factor',
    (hessian: Tensor, dampening: number) => ({
      make: { dead: uint8(hessian.width), report: float64(3) },
      change: { hessian },
      settings: { dampening },
      flop: hessian.width ** 3 / 3,
    }),
    { arithmetic: 'factor', parts: { hessian: 'gram', dead: 'solver', report: 'solver' } },
  ),

  /** The product x R, or x Rᵀ, x R⁻¹, x R⁻ᵀ, with R as factorHessian leaves it; float32 [rows, columns]. */
  triangularProduct: operation(
    'solve',
    (x: Tensor, factor: Tensor, { inverse = false, transposed = false } = {}) => ({
      make: { out: float32(...matrix(x)) },
      read: { x, factor },
      settings: { inverse, transposed },
      flop: x.rows * x.width * (x.width + 1),
    }),
    { arithmetic: 'solve', parts: { out: 'solver' } },
  ),

  /**
   * Conjugate gradients on H = R Rᵀ, with R as factorHessian leaves it, for all rows w of `weight` at once: towards the
   * smallest ½ w H wᵀ − b wᵀ over the entries that `mask` leaves. `residual`: b − w H, overwritten by that of the result.
   * Ends when the residual's norm is `tolerance` times what it was, or after `iterations`. Makes a report, float64: the
   * iterations, the share of the residual that is left.
   */
  conjugateGradients: operation(
    'solve',
    (
      weight: Tensor,
      residual: Tensor,
      { mask, factor }: { mask: Tensor; factor: Tensor },
      settings: { tolerance: number; iterations: number },
    ) => ({
      make: { report: float64(2) },
      change: { weight, residual },
      read: { mask, factor },
      settings,
      // As if it took all iterations.
      flop: settings.iterations * 2 * weight.rows * weight.width * (weight.width + 1),
    }),
    { arithmetic: 'solve', parts: { residual: 'solver', report: 'solver' } },
  ),

  /**
   * Prunes `weight`, float32 [rows, columns], with SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): what `given` marks,
   * else by the choice. `loss`: float64 [1], ½ Σ (w - q)² / U_jj². With `bits` the kept weights are rounded to step · (code - zero) with
   * codes from 0 to 2^bits - 1, on a grid for each row and group of columns: `steps`, of the type `stepType`, and `zeros`, float32, both
   * [rows, groups].
   */
  pruneSparsegpt: operation(
    'solve',
    (
      weight: Tensor,
      { factor, dead }: { factor: Tensor; dead: Tensor },
      { given, ...choice }: Choice & { given?: Tensor | undefined },
      { blockSize, rounding }: { blockSize: number; rounding?: Rounding | undefined },
    ) => ({
      make: {
        mask: uint8(...matrix(weight)),
        loss: float64(1),
        ...(rounding && gridsOf(weight, rounding)),
      },
      change: { weight },
      read: { factor, dead, given },
      settings: {
        ...choiceSettings(choice),
        blockSize,
        bits: rounding?.bits ?? 0,
        symmetric: rounding?.symmetric ?? false,
        clip: rounding?.clip ?? false,
      },
      flop: weight.rows * weight.width ** 2,
    }),
    { arithmetic: 'solve', parts: { mask: 'solver', loss: 'solver', steps: 'solver', zeros: 'solver' } },
  ),

  // --- gradients: dy is the loss's gradient by y, in the element type of y; of parameters float32 ---

  /** The product x W of x, [tokens, out], and a linear layer's weight, [out, in]: the gradient of its input from that of its output. */
  multiply: operation(
    'gradient',
    (x: Tensor, weight: Tensor, dtype: DType = x.dtype) => ({
      make: { out: { dtype, shape: [x.rows, weight.width] } },
      read: { x, weight },
      flop: 2 * x.rows * weight.rows * weight.width,
    }),
    { arithmetic: 'linear', parts: { weight: 'weights' } },
  ),

  /** Adds the rows of x: sums += Σ_t x[t]; sums float32 [columns of x]. */
  accumulateRows: operation('gradient', (sums: Tensor, x: Tensor) => ({ change: { sums }, read: { x } }), {
    parts: { sums: 'solver' },
  }),

  /**
   * The gradient of a norm's input from that of its output; `out` may be dy. Adds the parameters' gradients to dweight and dbias,
   * float32 [columns of x]. Without dbias the norm is rmsNorm, else layerNorm.
   */
  normGradient: operation(
    'gradient',
    (
      x: Tensor,
      dy: Tensor,
      weight: Tensor,
      epsilon: number,
      { dweight, dbias }: { dweight: Tensor; dbias?: Tensor | undefined },
      out?: Tensor,
    ) => ({
      make: { dx: out ?? like(dy) },
      change: dbias ? { dweight, dbias } : { dweight },
      read: { x, dy, weight },
      settings: { epsilon },
    }),
    { parts: { dweight: 'solver', dbias: 'solver' } },
  ),

  /**
   * The gradients of attention's q, k and v from that of its output. With sinks `dsinks`, float32 [rows of q, heads], becomes what each
   * query adds to theirs.
   */
  attentionGradient: operation(
    'gradient',
    (
      q: Tensor,
      k: Tensor,
      v: Tensor,
      dout: Tensor,
      { slopes, sinks, start = 0, window = 0, softcap = 0, ...shape }: AttentionShape,
      dsinks?: Tensor,
    ) => ({
      make: {
        dq: { dtype: q.dtype, shape: matrix(q) },
        dk: { dtype: q.dtype, shape: matrix(k) },
        dv: { dtype: q.dtype, shape: matrix(v) },
      },
      change: { ...(dsinks && { dsinks }) },
      read: { q, k, v, dout, slopes, sinks },
      settings: { ...shape, start, window, softcap },
      flop: 10 * q.width * shape.sequences * attentionPairs(q.rows / shape.sequences, start, window),
    }),
    { arithmetic: 'attention' },
  ),

  /** The gradient of an activation's input: dy = f'(x) · dy, x being what the activation was applied to. */
  activateGradient: operation('gradient', (dy: Tensor, x: Tensor, kind: Activation) => ({
    change: { dy },
    read: { x },
    settings: { kind },
  })),

  /** The gradients of gate: makes that of up, f(x) · dy, and overwrites dy with that of x, f'(x) · up · dy. */
  gateGradient: operation('gradient', (dy: Tensor, x: Tensor, up: Tensor, kind: Activation) => ({
    make: { dup: like(dy) },
    change: { dy },
    read: { x, up },
    settings: { kind },
  })),

  /** Undoes takeColumns(): columns [g · stride + first, g · stride + first + count) of out become those of x, for each group g. */
  putColumns: operation(
    'forward',
    (out: Tensor, x: Tensor, part: { first: number; count: number; stride: number }) => ({
      change: { out },
      read: { x },
      settings: part,
    }),
  ),

  /** The dot products of the rows of x and y, float32 [rows]. */
  rowDots: operation('gradient', (x: Tensor, y: Tensor) => ({
    make: { dots: float32(x.rows) },
    read: { x, y },
  })),

  /**
   * The errors ‖x[t] - target[t]‖² / ‖target[t]‖², float32 [rows]; a ‖target[t]‖² larger than `typicalNorm`, if there is one, counts as
   * the geometric mean of both. `dx`, of the shape of x, takes `scale` times the gradient of their sum.
   */
  relativeErrors: operation(
    'gradient',
    (
      x: Tensor,
      target: Tensor,
      {
        dx,
        scale = 1,
        typicalNorm = 0,
      }: { dx?: Tensor | undefined; scale?: number; typicalNorm?: number | undefined } = {},
    ) => ({
      make: { errors: float32(x.rows) },
      ...(dx && { change: { dx } }),
      read: { x, target },
      settings: { scale, typicalNorm },
    }),
  ),

  /**
   * The divergences KL(p ‖ q) of two models' next-token distributions at every position, float32 [tokens]: p of the target's
   * logits, q of x's. `dx`, of the shape of x, takes `scale` times the gradient of their sum. Logits are made as by crossEntropy.
   */
  klDivergence: operation(
    'gradient',
    (
      { x, head, bias }: { x: Tensor; head: Tensor; bias?: Tensor | undefined },
      target: { x: Tensor; head: Tensor; bias?: Tensor | undefined },
      {
        dx,
        scale = 1,
        softcap = 0,
      }: { dx?: Tensor | undefined; scale?: number; softcap?: number | undefined } = {},
    ) => ({
      make: { losses: float32(x.rows) },
      ...(dx && { change: { dx } }),
      read: { x, head, bias, target: target.x, targetHead: target.head, targetBias: target.bias },
      settings: { softcap, scale },
      flop: (dx ? 6 : 4) * x.rows * head.rows * head.width,
    }),
    { arithmetic: 'linear', parts: { head: 'weights', targetHead: 'weights' } },
  ),

  /**
   * One step of Adam (Kingma & Ba 2015, arXiv 1412.6980) with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101);
   * `step` counts from 1. All float32, [rows, columns]. With `keepZeros` weights that are zero stay so.
   */
  adam: operation(
    'gradient',
    (
      weight: Tensor,
      { first, second, gradient }: { first: Tensor; second: Tensor; gradient: Tensor },
      settings: {
        step: number
        rate: number
        beta1: number
        beta2: number
        epsilon: number
        decay: number
        keepZeros: boolean
      },
    ) => ({ change: { weight, first, second }, read: { gradient }, settings }),
    { parts: { weight: 'weights', first: 'solver', second: 'solver', gradient: 'solver' } },
  ),

  // --- packed matrices ---

  /**
   * Marks the elements of a float matrix [rows, columns] that are to be kept, all but those whose bits are zero: a bitmask, uint8
   * [rows, columns / 8 rounded up], the lowest bit first, and how many there are in each row, int32 [rows].
   */
  markValues: operation('convert', (x: Tensor) => ({
    make: {
      bitmask: uint8(x.rows, Math.ceil(x.width / 8)),
      counts: { dtype: 'int32' as const, shape: [x.rows] },
    },
    read: { x },
  })),

  /** The `count` marked elements of `x`, row by row, [count]; `offsets`, uint8 [rows, 8]: where each row begins, as 64-bit integers. */
  packValues: operation('convert', (x: Tensor, bitmask: Tensor, offsets: Tensor, count: number) => ({
    make: { values: { dtype: x.dtype, shape: [count] } },
    read: { x, bitmask, offsets },
  })),

  /**
   * The way back: `out` [rows, columns] in the type of the values, zero where no bit is set. Parts that contradict each other show at the next
   * synchronisation: INVALID_CHECKPOINT with a message that begins with `subject`.
   */
  unpackValues: operation(
    'convert',
    (
      { values, bitmask, offsets }: { values: Tensor; bitmask: Tensor; offsets: Tensor },
      out: Tensor,
      subject: string,
    ) => ({
      make: { out },
      read: { values, bitmask, offsets },
      settings: { subject },
    }),
  ),

  // --- codes: the integers of weights on grids. A weight is scale · (code - zero point); no zero points stand for 2^(bits - 1) ---

  /**
   * The grids that span the weights of each row and group of columns, as pruneSparsegpt finds them: `steps`, of the type `stepType`, and
   * `zeros`, float32, both [rows, groups]. x is of a float type and contiguous.
   */
  findGrids: operation('solve', (x: Tensor, { bits, symmetric, clip, ...rest }: Rounding) => ({
    make: gridsOf(x, { bits, symmetric, clip, ...rest }),
    read: { x },
    settings: { bits, symmetric, clip },
  })),

  /** The nearest codes on grids, uint8 [rows, columns], and the grids' zeros as uint8 [rows, groups]. */
  quantizeCodes: operation(
    'convert',
    (x: Tensor, { steps, zeros }: { steps: Tensor; zeros: Tensor }, bits: number) => ({
      make: { codes: uint8(...matrix(x)), zeroPoints: uint8(...matrix(zeros)) },
      read: { x, steps, zeros },
      settings: { bits },
    }),
  ),

  /** The weights of codes, computed in float32 and rounded to the type of `out`. */
  dequantizeCodes: operation(
    'convert',
    (
      codes: Tensor,
      { scale, zeroPoints }: { scale: Tensor; zeroPoints: Tensor | undefined },
      bits: number,
      out: Tensor,
    ) => ({
      make: { out },
      read: { codes, scale, zeroPoints },
      settings: { bits },
    }),
  ),

  /** Marks the codes that are not the zero point, as markValues does. */
  markCodes: operation('convert', (codes: Tensor, zeroPoints: Tensor | undefined, bits: number) => ({
    make: {
      bitmask: uint8(codes.rows, Math.ceil(codes.width / 8)),
      counts: { dtype: 'int32' as const, shape: [codes.rows] },
    },
    read: { codes, zeroPoints },
    settings: { bits },
  })),

  /**
   * Packs codes, each row as a stream of bits, the lowest first, that ends with a whole byte: uint8 of `shape`. With `marked` only the marked
   * ones, of the shape [bytes]; `offsets`, uint8 [rows, 8]: at which byte each row begins. Else all, [rows, bytes of a row].
   */
  packCodes: operation(
    'convert',
    (
      codes: Tensor,
      bits: number,
      shape: readonly number[],
      marked?: { bitmask: Tensor; offsets: Tensor },
    ) => ({
      make: { packed: uint8(...shape) },
      read: { codes, bitmask: marked?.bitmask, offsets: marked?.offsets },
      settings: { bits },
    }),
  ),

  /**
   * The way back: `codes`, uint8 [rows, columns], which are the zero point where they are not marked. Parts that contradict each other show
   * at the next synchronisation: INVALID_CHECKPOINT with a message that begins with `subject`.
   */
  unpackCodes: operation(
    'convert',
    (
      {
        packed,
        bitmask,
        offsets,
        zeroPoints,
      }: { packed: Tensor } & { [Name in 'bitmask' | 'offsets' | 'zeroPoints']?: Tensor | undefined },
      bits: number,
      codes: Tensor,
      subject: string,
    ) => ({
      make: { codes },
      read: { packed, bitmask, offsets, zeroPoints },
      settings: { bits, subject },
    }),
  ),

  // --- strips: matrices for products with a few rows, which are bound by reading them ---

  /** The bytes of each strip of a matrix, int32 [strips]. */
  measureStrips: operation('convert', ({ x, grid }: StripSource, form: StripForm) => ({
    make: { sizes: { dtype: 'int32' as const, shape: [Math.ceil(x.rows / stripRows)] } },
    read: { x, zeros: grid?.zeros },
    settings: { ...form },
  })),

  /**
   * The strips of a matrix one after another, uint8 [bytes]. `offsets`: where each begins, as the bytes of 64-bit integers, uint8
   * [strips, 8]: sums of their sizes. 64 of the bytes lie behind the last one. How a strip lies is the device's affair.
   */
  packStrips: operation(
    'convert',
    ({ x, grid }: StripSource, offsets: Tensor, bytes: number, form: StripForm) => ({
      make: { stream: uint8(bytes) },
      read: { x, zeros: grid?.zeros, scales: grid?.scales, offsets },
      settings: { ...form },
    }),
    { parts: { stream: 'weights' } },
  ),

  /**
   * x Wᵀ + b, of the type of x or `dtype`, for at most 8 rows of x and the matrix W [rows, columns of x] of these strips. With codes, x may be rounded to 8 bits, with
   * a scale for every 32 neighbours in a row.
   */
  multiplyStrips: operation(
    'forward',
    (
      x: Tensor,
      { stream, offsets, rows, form }: { stream: Tensor; offsets: Tensor; rows: number; form: StripForm },
      bias?: Tensor,
      dtype: DType = x.dtype,
    ) => ({
      make: { out: { dtype, shape: [x.rows, rows] } },
      read: { x, stream, offsets, bias },
      settings: { ...form },
      flop: 2 * x.rows * x.width * rows,
    }),
    { arithmetic: 'linear' },
  ),

  // --- inspection ---

  /** The number of zeros, then 1 for each pattern (n, m; int32 [patterns, 2]) that every group of m neighbours keeps; float64. */
  countZeros: operation(
    'solve',
    (tensor: Tensor, patterns?: Tensor) => ({
      make: { stats: float64(1 + (patterns?.rows ?? 0)) },
      read: { tensor, patterns },
    }),
    { parts: { stats: 'solver' } },
  ),
}

export type OperationName = keyof typeof operations

/** The phases of what is not in the table: moves between the host and the device. */
const transfers: Record<string, Phase> = {
  upload: 'convert',
  download: 'convert',
  releasePages: 'convert',
  offload: 'write',
  allReduce: 'communicate',
  broadcast: 'communicate',
}

/** The phase of an entry of a device's profile. */
export function phaseOf(name: string): Phase | undefined {
  return (operations as Partial<Record<string, Operation>>)[name]?.phase ?? transfers[name]
}

type IsUnion<T, Each = T> = T extends unknown ? ([Each] extends [T] ? false : true) : never

/** What a call returns: the tensor it makes; where it makes several, all by name. */
type Result<C> = C extends { make: infer Made }
  ? IsUnion<keyof Made> extends true
    ? { [Name in keyof Made]: Tensor }
    : Tensor
  : undefined

/** A method for every operation of the table. */
export type OperationMethods = {
  [Name in OperationName]: (
    ...args: Parameters<(typeof operations)[Name]['call']>
  ) => Result<ReturnType<(typeof operations)[Name]['call']>>
}

/** The bytes that a call moves: what it reads, and what it writes. */
export function bytesMoved({ change = {}, read = {}, rowsRead = {} }: Call, made: readonly Tensor[]): number {
  const written = made.reduce((sum, { bytes }) => sum + bytes, 0)
  const changed = Object.values(change).reduce((sum, { bytes }) => sum + 2 * bytes, 0)
  const operands = Object.entries(read).reduce((sum, [name, tensor]) => {
    if (!tensor) return sum
    const share = (rowsRead[name] ?? tensor.rows) / Math.max(1, tensor.rows)
    return sum + share * tensor.bytes
  }, 0)
  return written + changed + operands
}
