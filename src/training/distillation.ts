import type { BlockWeights } from '../models/block-weights.js'
import type { Batch, Engine } from '../models/engine.js'
import type { Head } from '../models/head.js'
import type { Tensor } from '../native/device.js'
import { PythonRandom } from '../text/python-random.js'
import { batched } from '../text/windows.js'
import { BlockTrainer, type Recording } from './block-trainer.js'
import type { DistillationOptions } from './options.js'
import type { DistillationLosses, SavedTraining } from './saved-training.js'
import { heldOutCount, learningRate, shuffled } from './schedule.js'

/**
 * DistillationOptions as parsed, and the seed of the order of windows.
 *
 * @internal
 */
export type DistillationSettings = Required<DistillationOptions> & { seed: number }

/** Where a distillation stands. */
export interface DistillationProgress {
  /** The number of steps made, of `steps`. */
  step: number
  steps: number
  /** The mean divergence KL(dense ‖ pruned) of the step's tokens, in nats. */
  training: number
  /** The same of the held-out tokens, as last measured. */
  heldOut: number
}

/**
 * How often the held-out windows are measured in all.
 *
 * @internal
 */
export const measurements = 4

/** A block of the model that learns; the last one is what leads to the head. */
interface Learner {
  weights: BlockWeights
  matrices: Map<string, Tensor>
  trainer: BlockTrainer
}

/**
 * Trains a pruned model so that its next-token distributions come near the dense model's (Hinton et al. 2015, arXiv 1503.02531): the
 * divergence KL(dense ‖ pruned) at temperature 1 over the whole vocabulary. Kept weights, biases and norms are trained, zeros stay
 * zero, embeddings and head stay. Blocks keep their inputs only; the rest of their activations is computed again on the way back.
 *
 * @internal
 */
export class Distillation {
  private readonly learners: Learner[] = []
  private readonly dense: BlockWeights[] = []
  private readonly heads: { own: Head; dense: Head }

  /** `teacher`: the dense model, on the student's device, of the same vocabulary. */
  constructor(
    private readonly student: Engine,
    private readonly teacher: Engine,
    private readonly o: DistillationSettings,
  ) {
    const { device, architecture } = student
    this.heads = { own: student.head(), dense: teacher.head() }
    device.within([], () => {
      for (let index = 0; index <= architecture.blockCount; index++) {
        const weights = student.loadBlock(index)
        const matrices = new Map(
          weights.spec.linears.map(({ name }) => [name, weights.linear(name).solving()]),
        )
        this.learners.push({
          weights,
          matrices,
          trainer: new BlockTrainer(student, index, weights, matrices),
        })
      }
      for (let index = 0; index < teacher.architecture.blockCount; index++) {
        this.dense.push(teacher.loadBlock(index))
      }
    })
  }

  /**
   * Trains on `windows`, all of one length. `report` is called after every step and may throw. The state is saved to `saved`, and what
   * an earlier process has left there is gone on with.
   */
  async run(
    windows: readonly Int32Array[],
    report: (progress: DistillationProgress) => void,
    saved?: SavedTraining,
  ): Promise<DistillationLosses> {
    const { o, learners } = this
    const kept = windows.length - heldOutCount(windows.length, o.holdout)
    const [training, heldOut] = [windows.slice(0, kept), windows.slice(kept)]
    const steps = o.epochs * Math.ceil(training.length / o.batch)
    const every = Math.max(1, Math.ceil(steps / measurements))
    const random = new PythonRandom(o.seed)
    for (const { trainer } of learners) trainer.snapshot()
    const losses = (await saved?.restore(this.state(), steps)) ?? {
      training: [],
      heldOut: [{ step: 0, loss: await this.divergence(heldOut) }],
      bestStep: 0,
    }
    const done = losses.training.length
    if (done > 0) for (const { trainer } of learners) trainer.resume(done)
    let best = losses.heldOut.find(({ step }) => step === losses.bestStep)!.loss
    let step = 0
    for (let epoch = 0; epoch < o.epochs; epoch++) {
      for (const part of batched(shuffled(training, random), o.batch)) {
        if (step < done) {
          step++
          continue
        }
        losses.training.push(await this.step(part, learningRate(step, steps, o.learningRate)))
        step++
        const measured = step % every === 0 || step === steps
        if (measured) {
          const loss = await this.divergence(heldOut)
          losses.heldOut.push({ step, loss })
          if (loss < best) {
            best = loss
            losses.bestStep = step
            for (const { trainer } of learners) trainer.snapshot()
          }
        }
        if (saved && (measured || saved.due)) await saved.save(this.state(), losses)
        report({ step, steps, training: losses.training.at(-1)!, heldOut: losses.heldOut.at(-1)!.loss })
      }
    }
    if (losses.bestStep < steps) for (const { trainer } of learners) trainer.restore()
    return losses
  }

  /** The tensors of all trainers' states, by names that begin with those of the checkpoint. */
  private state(): Map<string, Tensor> {
    return new Map(
      this.learners.flatMap(({ weights, trainer }) =>
        trainer.state.map(([name, tensor]): [string, Tensor] => [weights.spec.prefix + name, tensor]),
      ),
    )
  }

  /**
   * Hands every trained tensor over in its stored form, a block after the other; `store` gets the name in the checkpoint, and whether it is
   * a linear layer's matrix.
   */
  async settle(store: (name: string, tensor: Tensor, isMatrix: boolean) => Promise<void>): Promise<void> {
    for (const { weights, matrices, trainer } of this.learners) {
      const { prefix } = weights.spec
      for (const [name, matrix] of matrices) {
        const linear = weights.linear(name)
        const stored = linear.settle(matrix)
        try {
          await store(linear.name, stored, true)
        } finally {
          stored.dispose()
        }
      }
      for (const name of trainer.others) {
        const stored = this.student.device.within([], () => weights.settleParameter(name))
        try {
          await store(prefix + name, stored, false)
        } finally {
          stored.dispose()
        }
      }
    }
  }

  dispose(): void {
    for (const { weights, matrices, trainer } of this.learners) {
      trainer.dispose()
      for (const matrix of matrices.values()) matrix.dispose()
      weights.dispose()
    }
    for (const weights of this.dense) weights.dispose()
    this.heads.own.dispose()
    this.heads.dense.dispose()
  }

  /** Makes a step at the learning rate `rate` for `windows`; resolves to the mean divergence before it. */
  async step(windows: readonly Int32Array[], rate: number): Promise<number> {
    const loss = await this.descend(windows)
    for (const { trainer } of this.learners) await trainer.step(rate)
    return loss
  }

  /** Adds the gradients of the mean loss over `windows` to the trainers'; resolves to the mean divergence. */
  private async descend(windows: readonly Int32Array[]): Promise<number> {
    const length = windows[0]!.length
    const tokens = windows.length * length
    let sum = 0
    for (const group of batched(windows, this.student.windowsPerBatch(length))) {
      sum += await this.descendGroup(group, 1 / tokens)
    }
    return sum / tokens
  }

  /** The same for windows that run at once, of which each token counts `scale`; resolves to the sum of the divergences. */
  private async descendGroup(windows: readonly Int32Array[], scale: number): Promise<number> {
    const { student, learners, o } = this
    const { device } = student
    const made: Tensor[] = []
    let recording: Recording | undefined
    try {
      const target = await this.targets(windows, made)
      const { inputs, sequences } = await this.inputs(windows, made)
      const last = inputs.length - 1
      recording = await learners[last]!.trainer.record({ sequences, hidden: inputs[last]! })
      const { output } = recording
      const { losses, dx } = device.within(made, () => {
        const gradient = device.empty(output.dtype, output.shape)
        return { losses: this.losses(output, target.finished, { dx: gradient, scale }), dx: gradient }
      })
      let gradient = await recording.backward(dx)
      made.push(gradient)
      if (o.hiddenWeight > 0) {
        device.within(made, () => {
          const hidden = inputs[last]!
          const more = device.empty(hidden.dtype, hidden.shape)
          device.relativeErrors(hidden, target.hidden, { dx: more, scale: scale * o.hiddenWeight })
          device.add(gradient, more)
        })
      }
      for (let index = last - 1; index >= 0; index--) {
        recording = await learners[index]!.trainer.record({ sequences, hidden: inputs[index]! })
        const before = gradient
        gradient = await recording.backward(gradient)
        made.push(gradient)
        // What lies behind this block is not needed any more.
        for (const tensor of [before, inputs[index + 1]!]) tensor.dispose()
      }
      return (await device.readFloat32(losses)).reduce((a, b) => a + b, 0)
    } finally {
      recording?.dispose()
      for (const tensor of made) tensor.dispose()
    }
  }

  /** The mean divergence KL(dense ‖ pruned) of the tokens of `windows`, in nats. */
  async divergence(windows: readonly Int32Array[]): Promise<number> {
    const length = windows[0]!.length
    const { student } = this
    let sum = 0
    for (const group of batched(windows, student.windowsPerBatch(length))) {
      const made: Tensor[] = []
      try {
        const { finished } = await this.targets(group, made)
        const { inputs, sequences } = await this.inputs(group, made)
        const last = inputs.length - 1
        const batch = { sequences, hidden: inputs[last]! }
        const output = await student.runBlock(last, this.learners[last]!.weights, batch).finish()
        made.push(output)
        const losses = student.device.within(made, () => this.losses(output, finished))
        sum += (await student.device.readFloat32(losses)).reduce((a, b) => a + b, 0)
      } finally {
        for (const tensor of made) tensor.dispose()
      }
    }
    return sum / (windows.length * length)
  }

  private losses(output: Tensor, target: Tensor, options: { dx?: Tensor; scale?: number } = {}): Tensor {
    const { student, heads } = this
    return student.device.klDivergence(
      { x: output, ...heads.own.matrix },
      { x: target, ...heads.dense.matrix },
      { ...options, softcap: student.architecture.logitSoftcap },
    )
  }

  /** What the dense model makes of the windows: its last hidden states, and what its head reads. */
  private async targets(
    windows: readonly Int32Array[],
    made: Tensor[],
  ): Promise<{ hidden: Tensor; finished: Tensor }> {
    const { teacher, dense } = this
    const [batch] = teacher.embed([windows]) as [Batch]
    try {
      for (const [index, weights] of dense.entries()) await teacher.passBlock(index, weights, [batch])
    } finally {
      made.push(batch.hidden)
    }
    const finished = teacher.device.within(made, () => this.heads.dense.finish(batch.hidden))
    return { hidden: batch.hidden, finished }
  }

  /** The hidden states before every block of the student, and before what leads to its head. */
  private async inputs(
    windows: readonly Int32Array[],
    made: Tensor[],
  ): Promise<{ inputs: Tensor[]; sequences: Batch['sequences'] }> {
    const { student, learners } = this
    const [{ hidden, sequences }] = student.embed([windows]) as [Batch]
    made.push(hidden)
    const inputs = [hidden]
    for (let index = 0; index < learners.length - 1; index++) {
      const batch = { sequences, hidden: inputs[index]! }
      const output = await student.runBlock(index, learners[index]!.weights, batch).finish()
      made.push(output)
      inputs.push(output)
    }
    return { inputs, sequences }
  }
}
