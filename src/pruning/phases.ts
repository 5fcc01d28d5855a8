import { phaseOf, type Phase } from '../native/operations.js'

/** The seconds of a pruning run by what they were spent on; they add up to the run's. */
export interface PhaseSeconds extends Record<Phase, number> {
  /** The time of reading and encoding the calibration text, and of drawing the windows. */
  calibration: number
  /** The time of the forward passes. */
  forward: number
  /** The time of gradients and of the optimizer's steps. */
  gradient: number
  /** The time of the Gram matrices, or sums of squares, of the layers' inputs. */
  statistics: number
  /** The time of the factorisations. */
  factor: number
  /** The time of choosing and pruning weights. */
  solve: number
  /** The time of reading, converting, transposing and copying weights. */
  convert: number
  /** The time of exchanging tensors with other ranks, and of waiting for them. */
  communicate: number
  /** The time of writing the pruned model, and activations that are offloaded. */
  write: number
  /** The rest, such as what JavaScript takes while the device waits. */
  other: number
}

/** Sorts a profile by phases. `operations`: the device's profile of a run that took `seconds`; `calibration` and `commit` were spent besides. */
export function phaseSeconds(
  operations: Record<string, number>,
  { seconds, calibration, commit }: { seconds: number; calibration: number; commit: number },
): PhaseSeconds {
  const phases = {
    calibration,
    forward: 0,
    gradient: 0,
    statistics: 0,
    factor: 0,
    solve: 0,
    convert: 0,
    communicate: 0,
    write: commit,
    other: 0,
  }
  for (const [name, spent] of Object.entries(operations)) phases[phaseOf(name) ?? 'forward'] += spent
  const known = Object.values(phases).reduce((a, b) => a + b, 0)
  return { ...phases, other: Math.max(0, seconds - known) }
}
