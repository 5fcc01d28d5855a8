import * as z from 'zod'

/** How a pruned block is fitted to the dense model. */
export interface ReconstructOptions {
  /** How often the calibration windows are gone through. Default 4. */
  epochs?: number
  /** The learning rate of Adam at its highest, as a share of the root mean square of what it changes, in (0, 1]. Default 0.015. */
  learningRate?: number
  /** The number of calibration windows of a step. Default 1. */
  batch?: number
  /** The share of the windows that is held out to judge by, in (0, 0.5]. Default 0.1. */
  holdout?: number
  /**
   * The number of blocks behind which the error is measured: with 2 also behind the next block, taken as it is in the dense model,
   * which takes about twice the time. Default 1.
   */
  window?: number
}

/** How a pruned model is trained to be like the dense one. */
export interface DistillationOptions {
  /** How often the windows are gone through. Default 1. */
  epochs?: number
  /** The learning rate of Adam at its highest, as a share of the root mean square of what it changes, in (0, 1]. Default 0.0015. */
  learningRate?: number
  /** The number of windows of a step. Default 1. */
  batch?: number
  /** The share of the windows that is held out to judge by, in (0, 0.5]. Default 0.05. */
  holdout?: number
  /** The weight of the relative error of the last hidden states, beside the divergence of the distributions. Default 0. */
  hiddenWeight?: number
}

const epochs = z.int().min(1).max(10_000)
const learningRate = z.number().positive().max(1)
const batch = z.int().min(1).max(65_536)
const holdout = z.number().positive().max(0.5)

/**
 * Validates ReconstructOptions.
 *
 * @internal
 */
export const reconstructOptions = z.strictObject({
  epochs: epochs.default(4),
  learningRate: learningRate.default(0.015),
  batch: batch.default(1),
  holdout: holdout.default(0.1),
  window: z.int().min(1).max(2).default(1),
})

/**
 * Validates DistillationOptions.
 *
 * @internal
 */
export const distillationOptions = z.strictObject({
  epochs: epochs.default(1),
  learningRate: learningRate.default(0.0015),
  batch: batch.default(1),
  holdout: holdout.default(0.05),
  hiddenWeight: z.number().min(0).max(1000).default(0),
})

/**
 * Validates such options, or `true` or a number of epochs, which stand for them with the defaults; false gives undefined.
 *
 * @internal
 */
export const orEpochs = <Options>(options: z.ZodType<Options>) =>
  z
    .union([z.boolean(), z.number(), z.record(z.string(), z.unknown())], {
      error: 'must be true, false, a number of epochs or an object',
    })
    .transform((value, context) => {
      if (value === false) return undefined
      const given = value === true ? {} : typeof value === 'number' ? { epochs: value } : value
      const result = options.safeParse(given)
      if (result.success) return result.data
      // What is wrong with the number is what is wrong with the epochs.
      for (const { path, ...issue } of result.error.issues)
        context.issues.push({ ...issue, path: typeof value === 'number' ? [] : path, input: value } as never)
      return z.NEVER
    })
    .optional()
