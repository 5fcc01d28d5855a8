import type { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine, Offload } from '../models/engine.js'
import type { Communicator } from '../native/communicator.js'
import type { Device, Tensor } from '../native/device.js'
import { PythonRandom } from '../text/python-random.js'
import { BlockTrainer, recordBlock, type Recording } from './block-trainer.js'
import type { ReconstructOptions } from './options.js'
import { heldOutCount, learningRate, shuffled } from './schedule.js'

/**
 * ReconstructOptions as parsed.
 *
 * @internal
 */
export type ReconstructionSettings = Required<ReconstructOptions>

/** What became of one block. */
export interface ReconstructionReport {
  /**
   * The mean over held-out tokens of ‖output - dense output‖² / n, before and after: n is ‖dense output‖², or, where that is larger than
   * its median, the geometric mean of both. With a window of two blocks the mean of that behind either.
   */
  heldOut: { before: number; after: number }
  /** The number of optimizer steps. */
  steps: number
  /** The number of epochs whose result was kept; 0 when none was better than what pruning had left. */
  bestEpoch: number
  /** The held-out error before the first epoch and after each. */
  curve: number[]
}

/** Gradients of a block that stays as it is. */
const untrained = { of: () => undefined }

/**
 * What a block is fitted with.
 *
 * @internal
 */
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
  /** The next block of the dense model and its outputs there, where the error is measured behind it too. */
  next?: { weights: BlockWeights; targets: readonly Tensor[] } | undefined
  settings: ReconstructionSettings
  /** Moves what is not needed for the moment out of the device's memory. */
  offload?: Offload | undefined
  /** The ranks that fit the block together, if there are several: `inputs` and `targets` are of this one's windows. */
  communicator?: Communicator | undefined
  /** What is called after each part of the work; it may throw. */
  step: () => void
}

/** Some windows of a batch, and what the dense model makes of them. */
interface Part {
  batch: Batch
  /** The dense outputs of the block and, with a window of two blocks, of the next. */
  targets: Tensor[]
}

/**
 * Fits the pruned matrices of a block, its biases and its norms so that the block, fed the pruned model's hidden states, gives the
 * dense model's outputs: Adam on the error relative to each token's norm, with masks fixed. A norm larger than is typical counts for
 * less: the few tokens of huge norm that all others attend to would be spoilt else. A part of the windows is held out: what is kept is the
 * state after the epoch that was best on them, if any was better than the beginning. Of several ranks each holds some of its windows out,
 * and a step takes the mean of their gradients, so that all end with the same. Resolves to the report and the names of the biases and
 * norms that were trained.
 *
 * @internal
 */
export async function reconstructBlock(
  task: ReconstructionTask,
): Promise<ReconstructionReport & { parameters: string[] }> {
  const { engine, index, weights, settings, step, communicator } = task
  const { epochs } = settings
  const views: Tensor[] = []
  const trainer = new BlockTrainer(engine, index, weights, task.solved)
  try {
    const { training, heldOut } = split(task, views)
    const norms = await medianNorms(task, [...training, ...heldOut])
    const before = await meanError(task, heldOut, norms)
    trainer.snapshot()
    let [best, bestEpoch] = [before, 0]
    const curve = [before]
    const counts = await ofAll(task, [training.length])
    const perEpoch = Math.max(...counts)
    const total = epochs * perEpoch
    const random = new PythonRandom(index)
    let steps = 0
    for (let epoch = 1; epoch <= epochs; epoch++) {
      const pass = async (part: Part | undefined) => {
        if (part) await descend(task, trainer, part, norms)
        const place = steps % perEpoch
        if (communicator) await trainer.average(communicator, counts.filter((count) => count > place).length)
        await trainer.step(learningRate(steps++, total, settings.learningRate))
        if (part) put(task, part)
      }
      const parts: (Part | undefined)[] = shuffled(training, random)
      // A rank that has fewer parts than another takes part in all steps.
      while (parts.length < perEpoch) parts.push(undefined)
      await engine.paced(parts, pass, step)
      const current = await meanError(task, heldOut, norms)
      curve.push(current)
      if (current < best) {
        ;[best, bestEpoch] = [current, epoch]
        trainer.snapshot()
      }
    }
    if (bestEpoch < epochs) trainer.restore()
    return { heldOut: { before, after: best }, steps, bestEpoch, curve, parameters: trainer.others }
  } finally {
    for (const view of views) view.dispose()
    trainer.dispose()
  }
}

/** Lets the memory of a part's batch go until it is needed again. */
function put({ offload }: ReconstructionTask, { batch, targets }: Part): void {
  for (const tensor of [batch.hidden, ...targets]) offload?.(tensor)
}

/** Adds the gradients of the mean relative error of a part to the trainer's; `typicalNorms`: medianNorms(). */
async function descend(
  { engine, index, next }: ReconstructionTask,
  trainer: BlockTrainer,
  { batch, targets }: Part,
  typicalNorms: readonly number[],
): Promise<void> {
  const { device } = engine
  const recordings: Recording[] = []
  const made: Tensor[] = []
  try {
    const own = await trainer.record(batch)
    recordings.push(own)
    if (next) {
      const onwards = { sequences: batch.sequences, hidden: own.output }
      recordings.push(await recordBlock(engine, index + 1, next.weights, onwards, untrained))
    }
    let behind: Tensor | undefined
    for (const [i, recording] of [...recordings.entries()].reverse()) {
      const { output } = recording
      const gradient = device.within(made, () => {
        const dx = device.empty(output.dtype, output.shape)
        const scale = 1 / output.rows / recordings.length
        device.relativeErrors(output, targets[i]!, { dx, scale, typicalNorm: typicalNorms[i] })
        if (behind) device.add(dx, behind)
        return dx
      })
      behind = await recording.backward(gradient)
      made.push(behind)
    }
  } finally {
    for (const recording of recordings) recording.dispose()
    for (const tensor of made) tensor.dispose()
  }
}

/** The mean over tokens of the relative error of the outputs of the window's blocks. */
async function meanError(
  task: ReconstructionTask,
  parts: readonly Part[],
  typicalNorms: readonly number[],
): Promise<number> {
  const { engine, index, weights, next, step } = task
  const { device } = engine
  const errors: Tensor[] = []
  const window = [weights, ...(next ? [next.weights] : [])]
  const pass = async (part: Part) => {
    let batch = part.batch
    for (const [i, block] of window.entries()) {
      const hidden = await engine.runBlock(index + i, block, batch).finish()
      if (i > 0) batch.hidden.dispose()
      batch = { ...batch, hidden }
      device.within(errors, () =>
        device.relativeErrors(hidden, part.targets[i]!, { typicalNorm: typicalNorms[i] }),
      )
    }
    batch.hidden.dispose()
    put(task, part)
  }
  try {
    await engine.paced(parts, pass, step)
    const values = await ofAll(task, await elements(device, errors))
    return values.reduce((a, b) => a + b, 0) / values.length
  } finally {
    for (const tensor of errors) tensor.dispose()
  }
}

/** The median over all tokens of ‖dense output‖², for each block of the window. */
async function medianNorms(task: ReconstructionTask, parts: readonly Part[]): Promise<number[]> {
  const { device } = task.engine
  const medians: number[] = []
  for (const i of task.next ? [0, 1] : [0]) {
    const norms: Tensor[] = []
    try {
      for (const { targets } of parts) {
        device.within(norms, () => device.rowDots(targets[i]!, targets[i]!))
        task.offload?.(targets[i]!)
      }
      const sorted = Float32Array.from(await ofAll(task, await elements(device, norms))).sort()
      medians.push(sorted[sorted.length >> 1] ?? 0)
    } finally {
      for (const tensor of norms) tensor.dispose()
    }
  }
  return medians
}

/** The elements of all the tensors. */
async function elements(device: Device, tensors: readonly Tensor[]): Promise<Float32Array> {
  const parts: Float32Array[] = []
  for (const tensor of tensors) parts.push(await device.readFloat32(tensor))
  return Float32Array.from(parts.flatMap((part) => [...part]))
}

/** The numbers of all ranks. */
async function ofAll(
  { engine, communicator }: ReconstructionTask,
  own: readonly number[] | Float32Array,
): Promise<number[]> {
  const parts = communicator ? await communicator.gather(engine.device, own) : [own]
  return parts.flatMap((part) => [...part])
}

/** Cuts the batches into the parts of a step, and holds out the last windows. The views are the caller's to dispose of. */
function split(
  { inputs, targets, next, settings }: ReconstructionTask,
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
      ;(trains ? training : heldOut).push({
        batch,
        targets: [targets, ...(next ? [next.targets] : [])].map((tensors) => rows(tensors[i]!)),
      })
    }
    first += count
  })
  // A single window is trained on and judged by.
  return { training: training.length > 0 ? training : heldOut, heldOut }
}
