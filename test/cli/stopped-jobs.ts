import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

/** The files of a folder but its report, which has times. */
export const contents = (folder: string) =>
  new Map(
    readdirSync(folder)
      .filter((name) => !name.startsWith('sparsegpt-report.'))
      .map((name) => [name, readFileSync(join(folder, name)).toString('base64')]),
  )

/** The number of blocks, or of states, that the journal in the partial folder of `out` in `parent` tells of. */
export function finished(parent: string): number {
  const name = readdirSync(parent).find((entry) => entry.startsWith('out.partial-'))
  if (name === undefined) return 0
  try {
    return Math.max(0, readFileSync(join(parent, name, 'journal'), 'utf8').split('\n').length - 2)
  } catch {
    return 0
  }
}

/** Calls `then` as soon as `condition` is true. */
export function when(condition: () => boolean, then: () => void): void {
  const watching = setInterval(() => {
    if (!condition()) return
    clearInterval(watching)
    then()
  }, 1)
}

/** Whether a job that has just been started has a partial folder of its own in `parent`. */
export function begun(parent: string): () => boolean {
  const before = new Set(readdirSync(parent))
  return () => existsSync(parent) && readdirSync(parent).some((name) => !before.has(name))
}
