/**
 * The one error class of the package. `code` is stable and meant for programs; the message names the file, tensor or
 * option concerned and says what would be right.
 */
export class SparseGptError extends Error {
  override readonly name = 'SparseGptError'
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.code = code
  }
}

/** What went wrong, for programs. */
export type ErrorCode =
  /** An option or argument has a value that is not allowed. */
  | 'INVALID_OPTION'
  /** A file or folder that was named does not exist or cannot be read. */
  | 'FILE_NOT_FOUND'
  /** A checkpoint, config or tokenizer file is damaged, or does not hold what it says. */
  | 'INVALID_CHECKPOINT'
  /** The model's architecture, or a variant of it, is not supported. */
  | 'UNSUPPORTED_MODEL'
  /** The calibration or evaluation text cannot be used, for example because it is too short. */
  | 'INVALID_TEXT'
  /** Weights, activations or a Hessian contain NaN or infinity. */
  | 'NON_FINITE'
  /** The Hessian could not be factored, even with more dampening. */
  | 'NOT_POSITIVE_DEFINITE'
  /** The output folder exists and `force` was not given. */
  | 'OUTPUT_EXISTS'
  /** Writing the output failed, for example because the disk is full. */
  | 'WRITE_FAILED'
  /** A model or data set could not be downloaded from the hub, and is not in its cache. */
  | 'DOWNLOAD_FAILED'
  /** The work was stopped by an AbortSignal. */
  | 'ABORTED'
  /** The device (or the native addon) is not available. */
  | 'DEVICE_UNAVAILABLE'
  /** Memory ran out on the device, or would exceed the option `memory`. */
  | 'OUT_OF_MEMORY'
  /** A defect of this package: please report it. */
  | 'INTERNAL'
