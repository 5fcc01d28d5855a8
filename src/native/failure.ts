import { SparseGptError, type ErrorCode } from '../errors.js'

/** Errors of the addon carry a code; this gives them the package's class. */
function asSparseGptError(error: unknown): unknown {
  if (typeof error === 'object' && error !== null && 'code' in error && 'message' in error) {
    return new SparseGptError(error.code as ErrorCode, String(error.message), { cause: error })
  }
  return error
}

/** Calls the addon; what it throws becomes a SparseGptError. */
export function native<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw asSparseGptError(error)
  }
}

/** Calls the addon and awaits it; what it throws or rejects with becomes a SparseGptError. */
export async function awaitNative(call: () => Promise<void>): Promise<void> {
  try {
    await call()
  } catch (error) {
    throw asSparseGptError(error)
  }
}
