import { SparseGptError } from './errors.js'

/** Throws ABORTED when the signal has fired. Called between steps of at most a few seconds. */
export function abortable(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return
  const cause: unknown = signal.reason
  if (cause instanceof SparseGptError) throw cause
  throw new SparseGptError('ABORTED', 'stopped by the signal', { cause })
}
