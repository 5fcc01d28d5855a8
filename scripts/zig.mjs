// The compiler of the prebuilt binaries: Zig's, which brings clang, the C++ library, and the C libraries of every system, down to old
// versions of glibc. PyPI has it as the package ziglang.

import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './prebuilds.mjs'
import { installDebianPackages } from './system-packages.mjs'
import { findProgram } from './toolchain.mjs'

export const zigVersion = '0.16.0'

const home = join(root, 'build', `zig-${zigVersion}`)

function pythonWithPip() {
  const python = findProgram('python3', 'python')
  if (!python) return undefined
  return spawnSync(python, ['-m', 'pip', '--version'], { stdio: 'ignore' }).status === 0 ? python : undefined
}

/** Downloads Zig into build/ where it is not there yet, and returns its folder. Throws an Error that says what is missing. */
export function installZig() {
  if (!existsSync(home)) {
    if (!pythonWithPip()) installDebianPackages(['python3-pip'])
    const python = pythonWithPip()
    if (!python)
      throw new Error(
        'prebuilt binaries are compiled with Zig of PyPI, which needs Python 3 with pip (Debian: python3-pip)',
      )
    console.log(`prebuildify: downloading Zig ${zigVersion} from PyPI (420 MB unpacked)`)
    const unfinished = `${home}.part`
    rmSync(unfinished, { recursive: true, force: true })
    const options = [
      '--quiet',
      '--disable-pip-version-check',
      '--no-deps',
      '--no-cache-dir',
      '--only-binary=:all:',
    ]
    const { status, stderr } = spawnSync(
      python,
      ['-m', 'pip', 'install', ...options, '--target', unfinished, `ziglang==${zigVersion}`],
      { encoding: 'utf8' },
    )
    if (status !== 0) throw new Error(`pip could not download ziglang ${zigVersion}:\n${stderr}`)
    renameSync(unfinished, home)
  }
  return join(home, 'ziglang')
}

/** Writes programs into `folder` that CMake can call, and returns the arguments that make it use them for the target. */
export function zigToolchain(folder, { zig, system, processor }) {
  const program = join(installZig(), 'zig')
  mkdirSync(folder, { recursive: true })
  const cache = join(home, 'cache')
  const tool = (name, command) => {
    const path = join(folder, name)
    const lines = [
      '#!/bin/sh',
      `export ZIG_GLOBAL_CACHE_DIR='${cache}' ZIG_LOCAL_CACHE_DIR='${cache}'`,
      ...(system === 'Darwin' ? [dylibs] : []),
      `exec '${program}' ${command} "$@"`,
    ]
    writeFileSync(path, `${lines.join('\n')}\n`)
    chmodSync(path, 0o755)
    return path
  }
  return {
    CMAKE_SYSTEM_NAME: system,
    CMAKE_SYSTEM_PROCESSOR: processor,
    CMAKE_CXX_COMPILER: tool('c++', `c++ -target ${zig}`),
    CMAKE_AR: tool('ar', 'ar'),
    CMAKE_RANLIB: tool('ranlib', 'ranlib'),
  }
}

/** Zig's linker ends with a segmentation fault for a bundle, the form that CMake gives modules on macOS; Node loads a library as well. */
const dylibs = 'for arg; do shift; [ "$arg" = -bundle ] && arg=-dynamiclib; set -- "$@" "$arg"; done'

/** The licence texts of what Zig links into a binary: pairs of a name and a path. */
export function zigLicences() {
  const folder = installZig()
  return [
    ['libc++ (LLVM)', join(folder, 'lib', 'libcxx', 'LICENSE.TXT')],
    ['libc++abi (LLVM)', join(folder, 'lib', 'libcxxabi', 'LICENSE.TXT')],
    ['libunwind (LLVM)', join(folder, 'lib', 'libunwind', 'LICENSE.TXT')],
    ['compiler-rt of Zig', join(folder, 'LICENSE')],
  ]
}
