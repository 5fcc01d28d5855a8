import type * as z from 'zod'
import type { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine, Offload } from '../models/engine.js'
import type { Tensor } from '../native/device.js'
import { PythonRandom } from '../text/python-random.js'
import { BlockTrainer } from './block-trainer.js'
import type { reconstructOptions } from './options.js'
import { heldOutCount, learningRate, shuffled } from './schedule.js'

/** ReconstructOptions as parsed. */
export type ReconstructionSettings = z.output<typeof reconstructOptions>

/** What became of one block. */
export interface ReconstructionReport {
  /** The mean over held-out tokens of ‖output - dense output‖² / ‖dense output‖², before and after. */
  heldOut: { before: number; after: number }
  /** The number of optimizer steps. */
  steps: number
  /** The number of epochs whose result was kept; 0 when none was better than what pruning had left. */
  bestEpoch: number
}

/** What a block is fitted with. */
export interface ReconstructionTask {
  engine: Engine
  /** The number of the block, from 0. */
  index: number
  weights: BlockWeights
  /** The pruned matrices, float32 [out, in], by layer; they are changed in place. */
  solved: ReadonlyMap<string, Tensor>
  /** The hidden states before the block in the pruned model. */
  inputs: readonly Batch[]
  /** The dense block's outputs for the same windows in the dense model, [tokens, hidden] each. */
  targets: readonly Tensor[]
  settings: ReconstructionSettings
  /** Moves what is not needed for the moment out of the device's memory. */
  offload?: Offload | undefined
  /** What is called after each part of the work; it may throw. */
  step: () => void
}

/** Some windows of a batch, and what the dense model makes of them. */
interface Part {
  batch: Batch
  target: Tensor
}

/**
 * Fits the pruned matrices of a block, its biases and its norms so that the block, fed the pruned model's hidden states, gives the
 * dense model's outputs: Adam on the error relative to each token's norm, with masks fixed. A part of the windows is held out: what
 * is kept is the state after the epoch that was best on them, if any was better than the beginning. Resolves to the report and the
 * names of the biases and norms that were trained.
 */
export async function reconstructBlock(
  task: ReconstructionTask,
): Promise<ReconstructionReport & { parameters: string[] }> {
  const { engine, index, weights, settings, step } = task
  const { epochs } = settings
  const views: Tensor[] = []
  const trainer = new BlockTrainer(engine, index, weights, task.solved)
  try {
    const { training, heldOut } = split(task, views)
    const before = await meanError(task, heldOut)
    trainer.snapshot()
    let [best, bestEpoch] = [before, 0]
    const total = epochs * training.length
    const random = new PythonRandom(index)
    let steps = 0
    for (let epoch = 1; epoch <= epochs; epoch++) {
      const pass = async (part: Part) => {
        await descend(engine, trainer, part)
        await trainer.step(learningRate(steps++, total, settings.learningRate))
        put(task, part)
      }
      await engine.paced(shuffled(training, random), pass, step)
      const current = await meanError(task, heldOut)
      if (current < best) {
        ;[best, bestEpoch] = [current, epoch]
        trainer.snapshot()
      }
    }
    if (bestEpoch < epochs) trainer.restore()
    return { heldOut: { before, after: best }, steps, bestEpoch, parameters: trainer.others }
  } finally {
    for (const view of views) view.dispose()
    trainer.dispose()
  }
}

/** Lets the memory of a part's batch go until it is needed again. */
function put({ offload }: ReconstructionTask, { batch, target }: Part): void {
  offload?.(batch.hidden)
  offload?.(target)
}

/** Adds the gradients of the mean relative error of a part to the trainer's. */
async function descend(engine: Engine, trainer: BlockTrainer, { batch, target }: Part): Promise<void> {
  const { device } = engine
  const recording = await trainer.record(batch)
  const made: Tensor[] = []
  try {
    const { output } = recording
    const dx = device.within(made, () => {
      const gradient = device.empty(output.dtype, output.shape)
      device.relativeErrors(output, target, { dx: gradient, scale: 1 / output.rows })
      return gradient
    })
    ;(await recording.backward(dx)).dispose()
  } finally {
    recording.dispose()
    for (const tensor of made) tensor.dispose()
  }
}

/** The mean over tokens of the relative error of the block's output. */
async function meanError(task: ReconstructionTask, parts: readonly Part[]): Promise<number> {
  const { engine, index, weights, step } = task
  const { device } = engine
  const errors: Tensor[] = []
  const pass = async (part: Part) => {
    const output = await engine.runBlock(index, weights, part.batch).finish()
    device.within(errors, () => device.relativeErrors(output, part.target))
    output.dispose()
    put(task, part)
  }
  try {
    await engine.paced(parts, pass, step)
    let [sum, count] = [0, 0]
    for (const tensor of errors) {
      const values = await device.readFloat32(tensor)
      sum += values.reduce((a, b) => a + b, 0)
      count += values.length
    }
    return sum / count
  } finally {
    for (const tensor of errors) tensor.dispose()
  }
}

/** Cuts the batches into the parts of a step, and holds out the last windows. The views are the caller's to dispose of. */
function split(
  { inputs, targets, settings }: ReconstructionTask,
  views: Tensor[],
): { training: Part[]; heldOut: Part[] } {
  const windows = inputs.reduce((sum, { sequences }) => sum + sequences.count, 0)
  const kept = windows - heldOutCount(windows, settings.holdout)
  const training: Part[] = []
  const heldOut: Part[] = []
  let first = 0
  inputs.forEach(({ hidden, sequences }, i) => {
    const { count, length, start } = sequences
    for (let window = 0, taken = 0; window < count; window += taken) {
      const trains = first + window < kept
      taken = Math.min(settings.batch, count - window, trains ? kept - first - window : Infinity)
      const rows = (tensor: Tensor) => {
        const view = tensor.rowRange(window * length, taken * length)
        views.push(view)
        return view
      }
      const batch = { hidden: rows(hidden), sequences: { count: taken, length, start } }
      ;(trains ? training : heldOut).push({ batch, target: rows(targets[i]!) })
    }
    first += count
  })
  // A single window is trained on and judged by.
  return { training: training.length > 0 ? training : heldOut, heldOut }
}
