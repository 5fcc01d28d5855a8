import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, test } from '@jest/globals'

const repository = fileURLToPath(new URL('..', import.meta.url))
const shared = resolve(process.env['SPARSEGPT_SHARED'] ?? join(repository, '..', 'shared'))

/** The path of a file or folder of the shared models, data and golden results; undefined when they are not here. */
export function sharedPath(...parts: string[]): string | undefined {
  return existsSync(shared) ? join(shared, ...parts) : undefined
}

/** `describe` for tests that need the shared folder: skipped, and said so, where it is missing. */
export function describeWithShared(title: string, fn: () => void): void {
  if (sharedPath() !== undefined) {
    describe(title, fn)
    return
  }
  console.warn(`SKIPPED: "${title}" needs the shared data folder (set SPARSEGPT_SHARED; looked at ${shared})`)
  // `fn` would read the files where it lists its cases.
  describe.skip(title, () => test('needs the shared data folder', () => undefined))
}
