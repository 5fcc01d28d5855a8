// Compiles one of the libraries that the addon loads at run time, into build/Release beside it.

import { spawnSync } from 'node:child_process'
import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { jobs, root } from './install.mjs'

const output = join(root, 'build', 'Release')

function cmake(...args) {
  const { status, stdout, stderr, error } = spawnSync('cmake', args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  return { ok: status === 0, output: `${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}` }
}

/**
 * Compiles the target `sparsegpt_<name>` with the CMake option `option`, and says how long it took. `subject`: what it is, for messages;
 * `mend`: is handed the output of a failed configuration, and returns whether to try again, or what stands in the way of that. Returns what
 * went wrong, undefined if nothing did.
 */
export function buildLibrary({ name, option, subject, mend = () => false }) {
  const folder = join(root, 'build', name)
  const configure = () =>
    cmake(
      ...['-S', '.', '-B', folder, '-DCMAKE_BUILD_TYPE=Release'],
      ...[`-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${output}`, `-D${option}=ON`, '-DSPARSEGPT_TESTS=OFF'],
    )
  const start = performance.now()
  let result = configure()
  const mended = !result.ok && mend(result.output)
  if (typeof mended === 'string') return mended
  if (mended) result = configure()
  if (!result.ok && existsSync(folder)) {
    // The cache may be from another place, generator or compiler.
    rmSync(folder, { recursive: true, force: true })
    result = configure()
  }
  if (result.ok)
    result = cmake('--build', folder, '--target', `sparsegpt_${name}`, '--parallel', String(jobs()))
  if (!result.ok) return `${result.output}\ncompiling ${subject} failed, see above`
  for (const line of result.output.split('\n').filter((text) => /\bwarning\b/i.test(text))) console.warn(line)
  const seconds = ((performance.now() - start) / 1000).toFixed(0)
  console.log(`sparsegpt: ${join(output, `libsparsegpt_${name}.so`)} in ${seconds} s`)
  return undefined
}
