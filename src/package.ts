import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The package's own folder; this file lies one level below it, in src/ as in dist/. */
export const packageFolder = join(dirname(fileURLToPath(import.meta.url)), '..')

/** Whether this is a clone of the repository and no installed package: only a clone has the TypeScript sources. */
export const isCheckout = existsSync(join(packageFolder, 'src'))

/** The package's version. */
export const { version } = readJson('package.json') as { version: string }

/**
 * Returns the commit that the package was packed from, with "-dirty" where files had changed since; in a clone the one that is checked
 * out. Undefined where none is known.
 */
export function commit(): string | undefined {
  if (!isCheckout) {
    const packed = join('dist', 'commit.json')
    return existsSync(join(packageFolder, packed))
      ? (readJson(packed) as { commit?: string }).commit
      : undefined
  }
  // A copy of the sources without their history may lie in another repository.
  if (!existsSync(join(packageFolder, '.git'))) return undefined
  try {
    const args = ['describe', '--always', '--abbrev=12', '--exclude=*', '--dirty']
    return execFileSync('git', args, {
      cwd: packageFolder,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim()
  } catch {
    return undefined
  }
}

function readJson(name: string): unknown {
  return JSON.parse(readFileSync(join(packageFolder, name), 'utf8'))
}
