const signals = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const

/**
 * Runs `body` with a signal that Ctrl-C, Ctrl-\, a closed terminal or SIGTERM fires, so that it can clean up; a second one ends
 * the process at once, when what can be removed synchronously goes.
 */
export async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  const stop = () => {
    if (controller.signal.aborted) process.exit(1)
    process.stderr.write('\nsparsegpt: stopping (again to stop at once)\n')
    controller.abort()
  }
  for (const name of signals) process.on(name, stop)
  try {
    return await body(controller.signal)
  } finally {
    for (const name of signals) process.off(name, stop)
  }
}
