import type { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine, Offload } from '../models/engine.js'
import type { LinearGroup } from '../models/steps.js'
import type { Device, Tensor } from '../native/device.js'

/**
 * How much the tokens count in what the pruning knows of a layer's inputs: all the same ('even', the paper's), or by how much the block
 * changes their hidden states ('change').
 */
export const tokenWeightings = ['even', 'change'] as const

export type TokenWeighting = (typeof tokenWeightings)[number]

/**
 * What a block adds to each token's hidden state, ‖output - input‖² in float32, for the tokens of each batch. The batches stay as they
 * are. Of some models, a few blocks make hidden states of some tokens a hundred times as large as all others, which later blocks attend to.
 */
export async function blockChanges(
  engine: Engine,
  index: number,
  weights: BlockWeights,
  batches: readonly Batch[],
  { step, offload }: { step: () => void; offload?: Offload | undefined },
): Promise<Float32Array[]> {
  const { device } = engine
  const squares: Tensor[] = []
  const measure = async (batch: Batch) => {
    const output = await engine.runBlock(index, weights, batch).finish()
    device.within(squares, () =>
      device.tidy(() => {
        device.scale(output, -1)
        device.add(output, batch.hidden)
        return device.rowDots(output, output)
      }),
    )
    output.dispose()
    offload?.(batch.hidden)
  }
  try {
    await engine.paced(batches, measure, step)
    const changes: Float32Array[] = []
    for (const tensor of squares) changes.push(await device.readFloat32(tensor))
    return changes
  } finally {
    for (const tensor of squares) tensor.dispose()
  }
}

/**
 * The factors of the rows x of a group's input that make a token count by change / ‖x‖² in sums of products: by what an error of the layer
 * that is a share of x does to the block's output. Relative to the median, and at least 1: tokens of small changes count as they do without.
 * `changes`: those of the batch's tokens, of blockChanges().
 */
export async function tokenFactors(
  device: Device,
  { input, tokens }: Pick<LinearGroup, 'input' | 'tokens'>,
  changes: Float32Array,
): Promise<Float32Array> {
  const made: Tensor[] = []
  try {
    const squares = device.within(made, () => device.rowDots(input, input))
    const [sizes, ids] = await Promise.all([
      device.readFloat32(squares),
      tokens ? device.read(tokens) : undefined,
    ])
    const shares = sizes.map((size, i) => (size > 0 ? (changes[ids ? ids[i]! : i] ?? 0) / size : 0))
    const median = shares.slice().sort()[shares.length >> 1] ?? 0
    return shares.map((share) => (median > 0 ? Math.sqrt(Math.max(1, share / median)) : 1))
  } finally {
    for (const tensor of made) tensor.dispose()
  }
}

/** The rows of x, [tokens, columns], each times its factor, in a new tensor of the same type. */
export function scaledRows(device: Device, x: Tensor, factors: Float32Array): Tensor {
  return device.tidy(() => {
    const scaled = device.zeros('float32', x.shape)
    const inOrder = Int32Array.from(factors, (_, i) => i)
    device.scatterAdd(
      scaled,
      x,
      device.upload(inOrder, [inOrder.length]),
      device.upload(factors, [factors.length]),
    )
    return x.dtype === 'float32' ? scaled : device.cast(scaled, x.dtype)
  })
}
