import { abortable } from '../abort.js'
import type { BlockWeights } from '../models/block-weights.js'
import type { Engine } from '../models/engine.js'
import type { Head } from '../models/head.js'
import type { Sequences } from '../models/sequences.js'
import type { DType, Tensor } from '../native/device.js'
import { fewRows, Strips } from './strips.js'

/** A block, and the matrices of its linear layers that are there as strips only. */
interface ResidentBlock {
  weights: BlockWeights
  strips: Map<string, Strips>
}

/**
 * Makes strips of a matrix, `name` in the checkpoint: [rows, columns] in the type of the activations, all of whose elements fit in the type
 * `stored`; undefined where it stays as it is.
 */
export type StripsOf = (
  engine: Engine,
  matrix: Tensor,
  { name, stored }: { name: string; stored: DType },
) => Promise<Strips | undefined>

/** The strips of codes where they are what the checkpoint has, else those of bfloat16 elements where they are smaller. */
const smallest: StripsOf = async ({ device, weights }, matrix, { name, stored }) => {
  const coded = weights.coded(name)
  return (coded && (await Strips.ofCodes(device, coded))) ?? Strips.ofMatrix(device, matrix, stored)
}

/**
 * All weights of a model on its device, for passes of few tokens, which would take longer to load them. It owns native memory until
 * disposed of.
 */
export class ResidentModel {
  private readonly resident: ResidentBlock[] = []
  private readonly head: Head
  /** The tables that tokens are embedded with. */
  private readonly tables = new Map<string, Tensor>()
  private headStrips: Strips | undefined
  private users = 1

  private constructor(
    readonly engine: Engine,
    /** The weights' version that these are of. */
    private readonly version: number,
    private readonly stripsOf: StripsOf | undefined,
  ) {
    this.head = engine.head()
  }

  /**
   * Loads a model for passes of `rows` tokens, but for its prompts. Throws INVALID_CHECKPOINT, UNSUPPORTED_MODEL, ABORTED.
   */
  static async load(
    engine: Engine,
    rows: number,
    { stripsOf = smallest, signal }: { stripsOf?: StripsOf; signal?: AbortSignal | undefined } = {},
  ): Promise<ResidentModel> {
    const model = new ResidentModel(engine, engine.weights.version, rows <= fewRows ? stripsOf : undefined)
    try {
      await model.loadHead()
      for (let index = 0; index < engine.architecture.blockCount; index++) {
        abortable(signal)
        await model.loadBlock(index)
      }
    } catch (error) {
      model.dispose()
      throw error
    }
    return model
  }

  /** The model that the engine has kept, for passes of a token, or one that it keeps from then on. The caller disposes of it. */
  static async keptBy(engine: Engine, signal?: AbortSignal): Promise<ResidentModel> {
    const { kept } = engine
    if (kept instanceof ResidentModel && kept.version === engine.weights.version) {
      kept.users++
      return kept
    }
    engine.keep(undefined)
    const model = await ResidentModel.load(engine, 1, { signal })
    model.users++
    engine.keep(model)
    return model
  }

  /** What a token's pass reads of the weights, in bytes. */
  get bytes(): number {
    const blocks = this.resident.map(({ weights, strips }) => {
      const dense = weights.spec.linears.filter(({ name }) => !strips.has(name))
      const sizes = [
        ...dense.map(({ name }) => weights.linear(name).matrix.bytes),
        ...[...strips.values()].map(({ bytes }) => bytes),
      ]
      return sizes.reduce((sum, bytes) => sum + bytes, 0)
    })
    return blocks.reduce((sum, bytes) => sum + bytes, this.headBytes)
  }

  /** The head's part of them. */
  get headBytes(): number {
    return (this.headStrips ?? this.head.matrix.head).bytes
  }

  /** The number of keys that a query sees in each block, undefined for all. */
  get windows(): (number | undefined)[] {
    return this.resident.map(({ weights }) => weights.spec.window)
  }

  /** Runs `body` with a block's weights for a pass of `rows` tokens. What is enqueued may use them after it. */
  async withBlock(
    index: number,
    rows: number,
    body: (weights: BlockWeights, strips: ReadonlyMap<string, Strips>) => Promise<void>,
  ): Promise<void> {
    const { weights, strips } = this.resident[index]!
    if (strips.size === 0 || rows <= fewRows) return body(weights, strips)
    // Many rows are multiplied with the matrix itself.
    const whole = this.engine.loadBlock(index)
    try {
      await body(whole, new Map())
      return
    } finally {
      whole.dispose()
    }
  }

  /** The hidden states [count · length, hidden] of token ids. */
  embed(sequences: Sequences, ids: Int32Array): Tensor {
    const { architecture, device, weights } = this.engine
    return weights.holding(this.tables, () =>
      device.tidy(() => {
        const uploaded = device.upload(ids, [ids.length])
        return architecture.embed(weights, device, uploaded, this.engine.positionsOf(sequences))
      }),
    )
  }

  /** The logits behind every one of a few tokens, float32 [tokens, vocabulary]; `hidden` [tokens, hidden]. */
  logits(hidden: Tensor): Tensor {
    const { headStrips } = this
    return this.head.logits(hidden, headStrips && ((x, bias) => headStrips.multiply(x, bias, 'float32')))
  }

  dispose(): void {
    if (--this.users > 0) return
    for (const { weights, strips } of this.resident) {
      for (const matrix of strips.values()) matrix.dispose()
      weights.dispose()
    }
    this.headStrips?.dispose()
    this.head.dispose()
    this.engine.weights.giveBack([...this.tables.values()])
    this.tables.clear()
  }

  private async loadHead(): Promise<void> {
    const { name, matrix } = this.head
    this.headStrips = await this.stripsOf?.(this.engine, matrix.head, { name, stored: matrix.head.dtype })
  }

  private async loadBlock(index: number): Promise<void> {
    const { engine, resident, stripsOf } = this
    const block = { weights: engine.loadBlock(index), strips: new Map<string, Strips>() }
    resident.push(block)
    if (!stripsOf) return
    for (const { name } of block.weights.spec.linears) {
      const weight = block.weights.linear(name)
      const strips = await stripsOf(engine, weight.matrix, { name: weight.name, stored: weight.storedType })
      if (!strips) continue
      block.strips.set(name, strips)
      weight.release()
    }
  }
}
