import { SparseGptError } from '../errors.js'

/** The operating system's error code (`ENOENT`, `ENOSPC`, …) of `error`, if it has one. */
export function systemCode(error: unknown): string | undefined {
  const code: unknown =
    typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined
  return typeof code === 'string' ? code : undefined
}

/** The message of anything that was thrown. */
export function reason(error: unknown): string {
  if (typeof error === 'object' && error !== null && 'message' in error) return String(error.message)
  return systemCode(error) ?? String(error)
}

/**
 * The error FILE_NOT_FOUND for a failed open or read of `file`; `advice` says what would be right when it does not
 * exist. An error of this package is passed on as it is.
 */
export function readError(error: unknown, file: string, advice: string): SparseGptError {
  if (error instanceof SparseGptError) return error
  const missing = ['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')
  return new SparseGptError(
    'FILE_NOT_FOUND',
    missing ? `${file} does not exist: ${advice}` : `${file} cannot be read (${reason(error)}): ${advice}`,
    { cause: error },
  )
}
