/** Seconds of a pruning run by what they were spent on; they add up to the run's. */
export interface PhaseSeconds {
  /** Reading and encoding the calibration text, drawing the windows. */
  calibration: number
  forward: number
  /** Gram matrices, or sums of squares, of the layers' inputs. */
  statistics: number
  factor: number
  solve: number
  /** Weights read, converted, transposed and copied. */
  convert: number
  /** Of the pruned model, and of activations that are offloaded. */
  write: number
  /** Everything else, such as what JavaScript takes while the device waits. */
  other: number
}

/** What is not listed is part of the forward pass. */
const phaseOf: Record<string, Exclude<keyof PhaseSeconds, 'calibration' | 'other'>> = {
  accumulateGram: 'statistics',
  accumulateSquares: 'statistics',
  factorHessian: 'factor',
  pruneSparsegpt: 'solve',
  pruneMagnitude: 'solve',
  pruneWanda: 'solve',
  cast: 'convert',
  transpose: 'convert',
  fill: 'convert',
  upload: 'convert',
  download: 'convert',
  releasePages: 'convert',
  writeFile: 'write',
  offload: 'write',
}

/** `operations`: the device's profile of a run that took `seconds`; `calibration` and `commit` were spent besides. */
export function phaseSeconds(
  operations: Record<string, number>,
  { seconds, calibration, commit }: { seconds: number; calibration: number; commit: number },
): PhaseSeconds {
  const phases = {
    calibration,
    forward: 0,
    statistics: 0,
    factor: 0,
    solve: 0,
    convert: 0,
    write: commit,
    other: 0,
  }
  for (const [name, spent] of Object.entries(operations)) phases[phaseOf[name] ?? 'forward'] += spent
  const known = Object.values(phases).reduce((a, b) => a + b, 0)
  return { ...phases, other: Math.max(0, seconds - known) }
}
