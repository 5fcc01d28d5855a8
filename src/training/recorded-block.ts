import type { AttentionHeads } from '../models/block.js'
import type { BlockWeights } from '../models/block-weights.js'
import { EagerBlock, groupColumns, type Placement } from '../models/eager-block.js'
import { route, routeGradient, type ExpertLoad, type Routing } from '../models/routing.js'
import type { Steps } from '../models/steps.js'
import type { Activation, Device, DType, Tensor } from '../native/device.js'

/** Where the gradients of a block's parameters are summed, by their names below the block's prefix, '.weight' or '.bias' included. */
export interface ParameterGradients {
  /** Float32 in the parameter's shape, a matrix [out, in]; undefined for a parameter that is not trained. */
  of(name: string): Tensor | undefined
}

/** What the gradient of one value of the forward pass has come to; undefined while nothing depends on the value. */
interface Value {
  gradient?: Tensor | undefined
}

/** Undoes one operation: hands the gradients of what it read on, given that of what it made. */
type Backward = (dy: Tensor) => void | Promise<void>

/**
 * A block that, as it runs forward, records what it takes to run backward. It computes what EagerBlock computes, but overwrites
 * nothing whose value the gradients need. Gradients of activations are in the compute type, sums in float32.
 */
export class RecordedBlock extends EagerBlock {
  private readonly values = new WeakMap<Tensor, Value>()
  private readonly steps: (() => void | Promise<void>)[] = []
  /** Handles of what the way back reads. */
  private readonly kept: Tensor[] = []
  /** Tensors whose elements the way back reads. */
  private readonly needed = new WeakSet<Tensor>()
  private negativeSine: Tensor | undefined

  constructor(
    device: Device,
    weights: BlockWeights,
    index: number,
    placement: Placement,
    private readonly gradients: ParameterGradients,
  ) {
    super(device, weights, index, placement)
  }

  /**
   * Runs backward from the gradient of the block's output, which stays the caller's, and adds to the gradients of the parameters.
   * Resolves to the gradient of `input`, the block's, which the caller disposes of.
   */
  async backward(output: Tensor, gradient: Tensor, input: Tensor): Promise<Tensor> {
    this.valueIn(output).gradient = gradient.share()
    try {
      for (let step = this.steps.pop(); step; step = this.steps.pop()) {
        const made: Tensor[] = []
        try {
          await this.device.within(made, step)
        } finally {
          for (const tensor of made) tensor.dispose()
        }
      }
      return this.take(this.valueIn(input)) ?? this.device.within([], () => this.zerosLike(input))
    } finally {
      this.dispose()
    }
  }

  /** Frees what was kept for the way back. */
  dispose(): void {
    for (const tensor of this.kept) tensor.dispose()
    this.kept.length = 0
    this.steps.length = 0
    this.negativeSine = undefined
  }

  // --- the record ---

  private valueIn(tensor: Tensor): Value {
    let value = this.values.get(tensor)
    if (!value) this.values.set(tensor, (value = {}))
    return value
  }

  /** Keeps the elements of a tensor for the way back. */
  private keep(tensor: Tensor): Tensor {
    this.needed.add(tensor)
    const handle = tensor.share()
    this.kept.push(handle)
    return handle
  }

  /** The value that an operation finds in a tensor that it is about to overwrite. */
  private overwritten(tensor: Tensor): Value {
    if (this.needed.has(tensor)) {
      throw new TypeError('a block overwrites a tensor whose elements its gradients need')
    }
    const value = this.valueIn(tensor)
    this.values.delete(tensor)
    return value
  }

  private record(made: Tensor, backward: Backward): void {
    const value = this.valueIn(made)
    this.steps.push(async () => {
      const dy = this.take(value)
      if (!dy) return
      try {
        await backward(dy)
      } finally {
        dy.dispose()
      }
    })
  }

  private take(value: Value): Tensor | undefined {
    const { gradient } = value
    value.gradient = undefined
    return gradient
  }

  /** Adds to the gradient of a value. Nothing else may write to `gradient` afterwards. */
  private give(value: Value, gradient: Tensor): void {
    if (value.gradient) this.device.add(value.gradient, gradient)
    else value.gradient = gradient.share()
  }

  private zerosLike({ dtype, shape }: Tensor): Tensor {
    return this.device.cast(this.device.zeros('float32', shape), dtype)
  }

  // --- the operations ---

  override apply(name: string, input: Tensor): Tensor {
    const out = super.apply(name, input)
    const x = this.keep(input)
    const from = this.valueIn(input)
    const { matrix } = this.weights.linear(name)
    this.record(out, (dy) => {
      const weight = this.gradients.of(`${name}.weight`)
      if (weight) this.device.accumulateProduct(weight, dy, x)
      const bias = this.gradients.of(`${name}.bias`)
      if (bias) this.device.accumulateRows(bias, dy)
      this.give(from, this.device.multiply(dy, matrix))
    })
    return out
  }

  override product(x: Tensor, name: string, dtype?: DType): Tensor {
    const out = super.product(x, name, dtype)
    const from = this.valueIn(x)
    const weight = this.weights.parameter(`${name}.weight`)
    const read = this.keep(x)
    this.record(out, (dy) => {
      const sum = this.gradients.of(`${name}.weight`)
      if (sum) this.device.accumulateProduct(sum, dy, read)
      const bias = this.gradients.of(`${name}.bias`)
      if (bias) this.device.accumulateRows(bias, dy)
      this.give(from, this.device.multiply(dy, weight, read.dtype))
    })
    return out
  }

  override layerNorm(x: Tensor, name: string, epsilon: number): Tensor {
    const out = super.layerNorm(x, name, epsilon)
    this.recordNorm(this.valueIn(x), this.keep(x), out, name, epsilon, true)
    return out
  }

  override rmsNorm(x: Tensor, name: string, epsilon: number): Tensor {
    const out = super.rmsNorm(x, name, epsilon)
    this.recordNorm(this.valueIn(x), this.keep(x), out, name, epsilon, false)
    return out
  }

  override layerNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void {
    const before = this.keep(this.copyOf(x))
    const from = this.overwritten(x)
    super.layerNormHeads(x, headDim, name, epsilon)
    this.recordNorm(from, before, x, name, epsilon, true, headDim)
  }

  override rmsNormHeads(x: Tensor, headDim: number, name: string, epsilon: number): void {
    const before = this.keep(this.copyOf(x))
    const from = this.overwritten(x)
    super.rmsNormHeads(x, headDim, name, epsilon)
    this.recordNorm(from, before, x, name, epsilon, false, headDim)
  }

  private recordNorm(
    from: Value,
    x: Tensor,
    out: Tensor,
    name: string,
    epsilon: number,
    centred: boolean,
    width = x.width,
  ): void {
    const weight = this.weights.parameter(`${name}.weight`)
    this.record(out, (dy) => {
      const { device } = this
      const sums = (of: string) => this.gradients.of(`${name}.${of}`) ?? device.zeros('float32', [width])
      const into = { dweight: sums('weight'), ...(centred && { dbias: sums('bias') }) }
      const rows = (tensor: Tensor) =>
        tensor.width === width
          ? tensor.share()
          : tensor.reshape([(tensor.rows * tensor.width) / width, width])
      const [read, gradient] = [rows(x), rows(dy)]
      device.normGradient(read, gradient, weight, epsilon, into, gradient)
      for (const view of [read, gradient]) view.dispose()
      this.give(from, dy)
    })
  }

  override rotary(x: Tensor, headDim: number, interleaved = false): void {
    const from = this.overwritten(x)
    super.rotary(x, headDim, interleaved)
    const { rotary, positions } = this.placed
    const cosine = this.keep(rotary!.cosine)
    const sine = (this.negativeSine ??= this.negated(rotary!.sine))
    const at = this.keep(positions)
    // The transpose of a rotation turns the other way.
    this.record(x, (dy) => {
      this.device.rotary(dy, { cosine, sine }, at, headDim, interleaved)
      this.give(from, dy)
    })
  }

  private negated(tensor: Tensor): Tensor {
    const negative = this.copyOf(tensor)
    this.device.scale(negative, -1)
    return this.keep(negative)
  }

  override attention(q: Tensor, k: Tensor, v: Tensor, heads: AttentionHeads): Tensor {
    const inputs = [q, k, v].map((tensor) => ({ value: this.valueIn(tensor), read: this.keep(tensor) }))
    const slopes = heads.slopes && this.keep(heads.slopes)
    const out = super.attention(q, k, v, heads)
    const shape = this.attentionShape({ ...heads, slopes })
    const [queries, keys, values] = inputs as [Kept, Kept, Kept]
    this.record(out, (dy) => {
      const dsinks = shape.sinks && this.device.zeros('float32', [dy.rows, heads.heads])
      const read = [queries.read, keys.read, values.read] as const
      const { dq, dk, dv } = this.device.attentionGradient(...read, dy, shape, dsinks)
      const sum = heads.sinks === undefined ? undefined : this.gradients.of(heads.sinks)
      if (sum && dsinks) this.device.accumulateRows(sum, dsinks)
      this.give(queries.value, dq)
      this.give(keys.value, dk)
      this.give(values.value, dv)
    })
    return out
  }

  override activation(x: Tensor, kind: Activation): Tensor {
    const from = this.valueIn(x)
    const before = this.keep(x)
    const out = super.activation(this.copyOf(x), kind)
    this.record(out, (dy) => {
      this.device.activateGradient(dy, before, kind)
      this.give(from, dy)
    })
    return out
  }

  override gated(gate: Tensor, up: Tensor, kind: Activation): Tensor {
    const [fromGate, fromUp] = [this.valueIn(gate), this.valueIn(up)]
    const [gateBefore, upBefore] = [this.keep(gate), this.keep(up)]
    const out = super.gated(this.copyOf(gate), up, kind)
    this.record(out, (dy) => {
      this.give(fromUp, this.device.gateGradient(dy, gateBefore, upBefore, kind))
      this.give(fromGate, dy)
    })
    return out
  }

  override scale(x: Tensor, factor: number): Tensor {
    const from = this.overwritten(x)
    const out = super.scale(x, factor)
    this.record(out, (dy) => {
      this.device.scale(dy, factor)
      this.give(from, dy)
    })
    return out
  }

  override residual(x: Tensor, y: Tensor): Tensor {
    const [fromX, fromY] = [this.valueIn(x), this.overwritten(y)]
    const out = super.residual(x, y)
    this.record(out, (dy) => {
      this.give(fromX, this.copyOf(dy))
      this.give(fromY, dy)
    })
    return out
  }

  override parallelResidual(x: Tensor, attention: Tensor, mlp: Tensor): Tensor {
    return this.residual(x, this.residual(attention, mlp))
  }

  override copy(x: Tensor): Tensor {
    const from = this.valueIn(x)
    const out = super.copy(x)
    this.record(out, (dy) => {
      this.give(from, dy)
    })
    return out
  }

  override cast(x: Tensor, dtype: DType): Tensor {
    const from = this.valueIn(x)
    const { dtype: before } = x
    const out = super.cast(x, dtype)
    this.record(out, (dy) => {
      this.give(from, this.device.cast(dy, before))
    })
    return out
  }

  override splitColumns(fused: Tensor, ...counts: number[]): Tensor[] {
    const from = this.valueIn(fused)
    const { width } = fused
    const parts = super.splitColumns(fused, ...counts)
    this.recordParts(from, parts, groupColumns(counts), width)
    return parts
  }

  override splitGroups(fused: Tensor, groups: number, ...counts: number[]): Tensor[] {
    const from = this.valueIn(fused)
    const { width } = fused
    const parts = super.splitGroups(fused, groups, ...counts)
    this.recordParts(from, parts, groupColumns(counts), width)
    return parts
  }

  override joinGroups(groups: number, ...parts: Tensor[]): Tensor {
    const from = parts.map((part) => this.valueIn(part))
    const places = groupColumns(parts.map(({ width }) => width / groups))
    const out = super.joinGroups(groups, ...parts)
    this.record(out, (dy) => {
      from.forEach((value, i) => {
        this.give(value, this.device.takeColumns(dy, { groups, ...places[i]! }))
      })
    })
    return out
  }

  override repeatColumns(x: Tensor, times: number): Tensor {
    const from = this.valueIn(x)
    const { width } = x
    const out = super.repeatColumns(x, times)
    this.record(out, (dy) => {
      const sum = this.device.takeColumns(dy, { groups: 1, first: 0, count: width, stride: 0 })
      for (let i = 1; i < times; i++) {
        const columns = this.device.adopt(dy.columns(i * width, width))
        this.device.add(sum, columns)
      }
      this.give(from, sum)
    })
    return out
  }

  private recordParts(
    from: Value,
    parts: readonly Tensor[],
    places: readonly { first: number; count: number; stride: number }[],
    width: number,
  ): void {
    const values = parts.map((part) => ({ value: this.valueIn(part), part }))
    this.steps.push(() => {
      const { rows, dtype } = parts[0]!
      const complete = values.every(({ value }) => value.gradient)
      const whole = complete
        ? this.device.empty(dtype, [rows, width])
        : this.device.cast(this.device.zeros('float32', [rows, width]), dtype)
      values.forEach(({ value }, i) => {
        const dy = this.take(value)
        if (!dy) return
        this.device.putColumns(whole, dy, places[i]!)
        dy.dispose()
      })
      this.give(from, whole)
    })
  }

  // --- routed experts ---

  override *route(scores: Tensor, routing: Routing, preference?: string): Steps<ExpertLoad[]> {
    const from = this.valueIn(scores)
    const { rows, width } = scores
    const { elements, preferences } = yield* this.routed(scores, preference)
    const host = route(elements, routing, preferences)
    const loads = this.loads(host)
    const shares = loads.map((load) => this.valueIn(load.shares))
    this.steps.push(async () => {
      const gradients = shares.map((value) => this.take(value))
      const read = gradients.map((gradient) =>
        gradient ? this.device.readFloat32(gradient) : Promise.resolve(new Float32Array(0)),
      )
      const dscores = routeGradient(elements, routing, host, await Promise.all(read))
      for (const gradient of gradients) gradient?.dispose()
      this.give(from, this.device.upload(dscores, [rows, width]))
    })
    scores.dispose()
    return loads
  }

  override rows(x: Tensor, ids: Tensor): Tensor {
    const from = this.valueIn(x)
    const { shape } = x
    const rows = this.keep(ids)
    const out = super.rows(x, ids)
    this.record(out, (dy) => {
      const sum = this.device.zeros('float32', shape)
      const ones = this.device.upload(new Float32Array(dy.rows).fill(1), [dy.rows])
      this.device.scatterAdd(sum, dy, rows, ones)
      this.give(from, sum)
    })
    return out
  }

  override addRows(sums: Tensor, x: Tensor, ids: Tensor, factors: Tensor): void {
    // What is added to the sums goes on from there: their gradient is that of each summand.
    const total = this.valueIn(sums)
    const [from, share] = [this.valueIn(x), this.valueIn(factors)]
    const [read, rows, weights] = [this.keep(x), this.keep(ids), this.keep(factors)]
    super.addRows(sums, x, ids, factors)
    this.steps.push(() => {
      if (!total.gradient) return
      const { device } = this
      const dy = device.embedding(total.gradient, rows, read.dtype)
      this.give(share, device.rowDots(dy, read))
      const scaled = device.zeros('float32', dy.shape)
      const inOrder = device.upload(
        Int32Array.from({ length: dy.rows }, (_, i) => i),
        [dy.rows],
      )
      device.scatterAdd(scaled, dy, inOrder, weights)
      this.give(from, device.cast(scaled, read.dtype))
    })
  }

  private copyOf(x: Tensor): Tensor {
    return this.device.cast(x, x.dtype)
  }
}

/** An operand: its value in the record and its elements. */
interface Kept {
  value: Value
  read: Tensor
}
