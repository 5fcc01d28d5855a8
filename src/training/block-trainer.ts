import type { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine } from '../models/engine.js'
import type { LinearWeight } from '../models/linear-weight.js'
import type { Communicator } from '../native/communicator.js'
import type { Device, Tensor } from '../native/device.js'
import { RecordedBlock, type ParameterGradients } from './recorded-block.js'

/** A parameter in float32 with what Adam keeps of it. */
interface TrainedParameter {
  value: Tensor
  first: Tensor
  second: Tensor
  gradient: Tensor
  /** What its size is read from: Σ x² of each row, and the number of zeros. */
  measured: { squares: Tensor; zeros: Tensor }
  /** The layer whose forward pass follows the value; undefined for a norm's weight or a bias, which is used as it is. */
  linear: LinearWeight | undefined
}

/** The size that smaller parameters, such as biases that are zero, are taken to have. */
const smallest = 0.01

/** A forward pass that waits for the gradient of its output. */
export interface Recording {
  /** The block's output, [tokens, hidden]; the recording owns it. */
  output: Tensor
  /**
   * Adds to the gradients of the parameters, from the gradient of the output. Resolves to the gradient of the block's input, which
   * the caller disposes of. The recording is used up.
   */
  backward(gradient: Tensor): Promise<Tensor>
  dispose(): void
}

/** Runs `batch` through a block so that it can go backward; `gradients` says which of its parameters get theirs. */
export async function recordBlock(
  engine: Engine,
  index: number,
  weights: BlockWeights,
  batch: Batch,
  gradients: ParameterGradients,
): Promise<Recording> {
  let block: RecordedBlock | undefined
  const run = engine.runBlock(
    index,
    weights,
    batch,
    (placement) => (block = new RecordedBlock(engine.device, weights, index, placement, gradients)),
  )
  try {
    const output = await run.finish()
    return {
      output,
      backward: (gradient) => block!.backward(output, gradient, batch.hidden).finally(() => output.dispose()),
      dispose: () => {
        block!.dispose()
        output.dispose()
      },
    }
  } catch (error) {
    run.dispose()
    block?.dispose()
    throw error
  }
}

/**
 * Trains the parameters of one block with Adam: its pruned matrices, of which zeros stay zero, its biases and its norms. It owns
 * native memory until disposed of: for each parameter two means, a gradient and, between snapshot() and restore(), a copy.
 */
export class BlockTrainer implements ParameterGradients {
  private readonly parameters = new Map<string, TrainedParameter>()
  private copies: Tensor[] = []
  private made: Tensor[] = []
  private steps = 0
  /** The root mean square of each parameter's elements before the first step, zeros apart. */
  private sizes: number[] | undefined

  /** `solved`: the matrices to train, float32 [out, in], by layer; they are changed in place and stay the caller's. */
  constructor(
    private readonly engine: Engine,
    private readonly index: number,
    private readonly weights: BlockWeights,
    solved: ReadonlyMap<string, Tensor>,
  ) {
    const { device } = engine
    device.within(this.made, () => {
      for (const [name, value] of solved) {
        const linear = weights.linear(name)
        linear.follow(value)
        this.parameters.set(`${name}.weight`, { value, linear, ...states(device, value) })
        const bias = weights.bias(name)
        if (bias)
          this.parameters.set(`${name}.bias`, { value: bias, linear: undefined, ...states(device, bias) })
      }
      for (const name of weights.norms) {
        const value = weights.parameter(name)
        this.parameters.set(name, { value, linear: undefined, ...states(device, value) })
      }
    })
  }

  of(name: string): Tensor | undefined {
    return this.parameters.get(name)?.gradient
  }

  /** The names of what is trained besides the matrices. */
  get others(): string[] {
    return [...this.parameters].flatMap(([name, { linear }]) => (linear ? [] : [name]))
  }

  /** Runs `batch` forward so that it can go backward. */
  record(batch: Batch): Promise<Recording> {
    return recordBlock(this.engine, this.index, this.weights, batch, this)
  }

  /** The tensors, float32, that go on changing, by name: for each parameter its value, Adam's two means and the copy of snapshot(). */
  get state(): [string, Tensor][] {
    return [...this.parameters].flatMap(([name, { value, first, second }], i): [string, Tensor][] => [
      [name, value],
      [`${name}.exp_avg`, first],
      [`${name}.exp_avg_sq`, second],
      [`${name}.best`, this.copies[i]!],
    ])
  }

  /** Goes on behind the step `step`, as whose state the tensors of `state` have been filled. */
  resume(step: number): void {
    this.steps = step
    for (const { value, linear } of this.parameters.values()) linear?.follow(value)
  }

  /** Replaces the gradients by those of all ranks together, divided by `count`. */
  async average(communicator: Communicator, count: number): Promise<void> {
    const { device } = this.engine
    for (const { gradient } of this.parameters.values()) {
      await communicator.allReduce(device, gradient)
      device.scale(gradient, 1 / count)
    }
  }

  /**
   * Makes a step along the gradients summed since the last one, at the learning rate `rate` times the parameter's size (Shazeer and
   * Stern 2018, arXiv 1804.04235): the weights of models differ in size by a factor of ten.
   */
  async step(rate: number): Promise<void> {
    const { device } = this.engine
    const sizes = (this.sizes ??= await this.measure())
    const step = ++this.steps
    ;[...this.parameters.values()].forEach(({ value, linear, ...states }, i) => {
      const settings = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, decay: 0 }
      const own = rate * Math.max(sizes[i]!, smallest)
      device.adam(value, states, { step, rate: own, keepZeros: linear !== undefined, ...settings })
      device.fill(states.gradient, 0)
      linear?.follow(value)
    })
  }

  private measure(): Promise<number[]> {
    const { device } = this.engine
    const size = async ({ value, measured }: TrainedParameter) => {
      const [squares, [zeros = 0]] = await Promise.all([
        device.readFloat32(measured.squares),
        device.read(measured.zeros),
      ])
      const count = value.rows * value.width - zeros
      return Math.sqrt(squares.reduce((a, b) => a + b, 0) / Math.max(1, count))
    }
    return Promise.all([...this.parameters.values()].map(size))
  }

  /** Notes the values of all parameters for restore(), in the place of those noted before. */
  snapshot(): void {
    const { device } = this.engine
    const values = [...this.parameters.values()].map(({ value }) => value)
    const before = this.copies
    this.copies = device.within([], () =>
      values.map((value, i) => device.cast(value, 'float32', before[i]?.share())),
    )
    for (const tensor of before) tensor.dispose()
  }

  /** Puts the values that snapshot() has noted back. */
  restore(): void {
    const { device } = this.engine
    ;[...this.parameters.values()].forEach(({ value, linear }, i) => {
      const copy = this.copies[i]
      if (!copy) return
      device.cast(copy, 'float32', value)
      linear?.follow(value)
    })
  }

  dispose(): void {
    for (const tensor of [...this.made, ...this.copies]) tensor.dispose()
    this.made = []
    this.copies = []
  }
}

function states(
  device: Device,
  value: Tensor,
): Pick<TrainedParameter, 'first' | 'second' | 'gradient' | 'measured'> {
  const { shape } = value
  return {
    first: device.zeros('float32', shape),
    second: device.zeros('float32', shape),
    gradient: device.zeros('float32', shape),
    measured: { squares: device.rowDots(value, value), zeros: device.countZeros(value) },
  }
}
