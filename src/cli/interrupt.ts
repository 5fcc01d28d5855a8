import { exitCodes } from './failure.js'
import { clearProgress } from './progress.js'

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const

let stoppedBy: NodeJS.Signals | undefined

/** The signal that this process has been told to stop by, if it has. */
export const stopSignal = (): NodeJS.Signals | undefined => stoppedBy

/**
 * Runs `body` with a signal that Ctrl-C, Ctrl-\, a closed terminal or SIGTERM fires, so that it can clean up; a second one ends
 * the process at once, when what can be removed synchronously goes.
 */
export async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  const stop = (name: NodeJS.Signals) => {
    if (controller.signal.aborted) process.exit(exitCodes.stoppedBy(name))
    clearProgress()
    // What the terminal shows of the key, ^C, goes too.
    const clear = process.stderr.isTTY ? '\r\x1b[K' : ''
    process.stderr.write(`${clear}sparsegpt: stopping (again to stop at once)\n`)
    stoppedBy = name
    controller.abort()
  }
  for (const name of signals) process.on(name, stop)
  try {
    return await body(controller.signal)
  } finally {
    for (const name of signals) process.off(name, stop)
  }
}
