#!/usr/bin/env node
// Fills prebuilds/ with binaries that users install instead of compiling. See prebuilds/README.md.
//
//   npm run prebuildify                       linux-x64, glibc and musl
//   npm run prebuildify -- --all              every system
//   npm run prebuildify -- linux-arm64 ...    those whose name (see scripts/prebuilds.mjs) begins so
//
// Zig cross-compiles, so one Linux machine makes all of them. The C++ library is linked in. The same sources make the same bytes.

import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { cmakeJs, jobs } from './install.mjs'
import {
  licencesPath,
  manifestPath,
  prebuilds,
  readManifest,
  root,
  sha256,
  sourcesDigest,
  targets,
} from './prebuilds.mjs'
import { checkToolchain } from './toolchain.mjs'
import { zigLicences, zigToolchain, zigVersion } from './zig.mjs'

const require = createRequire(import.meta.url)

function chosenTargets(args) {
  if (args.includes('--all')) return targets
  const wanted = args.length > 0 ? args : ['linux-x64']
  for (const prefix of wanted) {
    if (!targets.some(({ file }) => file.startsWith(prefix)))
      throw new Error(
        `no target begins with "${prefix}"; there are ${targets.map(({ file }) => file).join(', ')}`,
      )
  }
  return targets.filter(({ file }) => wanted.some((prefix) => file.startsWith(prefix)))
}

function build(target) {
  const folder = join(root, 'build', 'prebuild', target.file.replace(/\.node$/, ''))
  const output = join(folder, 'output')
  const definitions = {
    ...zigToolchain(join(folder, 'bin'), target),
    CMAKE_LIBRARY_OUTPUT_DIRECTORY: output,
    // No path of the machine that compiles is part of the result.
    CMAKE_CXX_FLAGS: `-ffile-prefix-map=${root}=.`,
    // Stays loaded until the process ends: what Zig's libraries register to be done then would be gone with the last worker thread.
    CMAKE_MODULE_LINKER_FLAGS: target.file.startsWith('linux') ? '-s -Wl,-z,nodelete' : '-s',
  }
  const options = [
    `--out=${join(folder, 'cmake')}`,
    `--parallel=${jobs()}`,
    ...Object.entries(definitions).map(([name, value]) => `--CD${name}=${value}`),
  ]
  for (const step of ['configure', 'build']) {
    const { status, output: text } = cmakeJs(step, options)
    if (status !== 0) throw new Error(`${text}\ncompiling ${target.file} failed, see above`)
  }
  return join(output, 'sparsegpt.node')
}

/** The texts of the licences of what is in the binaries beside our own code. */
function licences() {
  const packages = ['node-addon-api', 'node-api-headers'].map((name) => {
    const folder = dirname(require.resolve(`${name}/package.json`))
    return [name, ['LICENSE.md', 'LICENSE'].map((file) => join(folder, file)).find(existsSync)]
  })
  const parts = [...packages, ...zigLicences()].map(
    ([name, path]) =>
      `${'='.repeat(80)}\n${name}\n${'='.repeat(80)}\n\n${readFileSync(path, 'utf8').trim()}\n`,
  )
  return `The binaries in this folder hold code of the following projects.\n\n${parts.join('\n')}`
}

function main(args) {
  // CMake and make; the compiler is Zig's.
  const missing = checkToolchain().filter(({ part }) => part !== 'compiler')
  if (missing.length > 0) throw new Error(missing.map(({ text }) => text).join('\n'))
  const sources = sourcesDigest()
  const manifest = readManifest()
  for (const target of chosenTargets(args)) {
    const start = performance.now()
    const built = build(target)
    const path = join(prebuilds, target.file)
    mkdirSync(dirname(path), { recursive: true })
    copyFileSync(built, path)
    const digest = sha256(readFileSync(path))
    manifest.binaries[target.file] = {
      sources,
      toolchain: `zig ${zigVersion}`,
      target: target.zig,
      sha256: digest,
    }
    writeFileSync(manifestPath, `${JSON.stringify(manifest, null, 2)}\n`)
    console.log(
      `prebuildify: prebuilds/${target.file} in ${((performance.now() - start) / 1000).toFixed(0)} s`,
    )
  }
  writeFileSync(licencesPath, licences())
}

try {
  main(process.argv.slice(2))
} catch (error) {
  console.error(`prebuildify: ${error.message}`)
  process.exit(1)
}
