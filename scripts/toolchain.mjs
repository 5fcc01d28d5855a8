#!/usr/bin/env node
// Checks that this machine can compile the addon, before CMake or a compiler says so in its own words.
//
//   node scripts/toolchain.mjs      exits 1 and says what is missing and how to install it
//
// Uses nothing but Node: it runs before node_modules exists.

import { spawnSync } from 'node:child_process'
import { accessSync, constants, readFileSync, realpathSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const MINIMUM_CMAKE = [3, 18]

// What each package manager calls the parts. A part that comes with another one has the same name.
const SYSTEMS = [
  {
    tool: 'apt-get',
    install: 'apt-get install -y --no-install-recommends',
    names: { compiler: 'g++', make: 'make', cmake: 'cmake' },
  },
  {
    tool: 'dnf',
    install: 'dnf install -y',
    names: { compiler: 'gcc-c++', make: 'make', cmake: 'cmake' },
  },
  {
    tool: 'pacman',
    install: 'pacman -S --needed',
    names: { compiler: 'gcc', make: 'make', cmake: 'cmake' },
  },
  {
    tool: 'apk',
    install: 'apk add',
    names: { compiler: 'g++', make: 'make', cmake: 'cmake' },
  },
  {
    tool: 'brew',
    install: 'brew install',
    // The compiler and make are Apple's: see installCommand.
    names: { compiler: 'xcode', make: 'xcode', cmake: 'cmake' },
  },
]

/** The first of the named programs that is on the PATH (or is a path itself), or undefined. */
export function findProgram(...names) {
  const folders = (process.env.PATH ?? '').split(delimiter).filter(Boolean)
  for (const name of names) {
    for (const path of name.includes('/') ? [name] : folders.map((folder) => join(folder, name))) {
      try {
        accessSync(path, constants.X_OK)
        return path
      } catch {
        // the next one
      }
    }
  }
  return undefined
}

/** The package manager of this machine: an entry of SYSTEMS, or undefined. */
export function detectSystem() {
  const order = process.platform === 'darwin' ? [...SYSTEMS].reverse() : SYSTEMS
  return order.find(({ tool }) => findProgram(tool))
}

/** One line that installs the parts ('compiler', 'make', 'cmake') on this machine. */
export function installCommand(parts) {
  if (process.platform === 'darwin') {
    const names = [...new Set(parts.map((part) => SYSTEMS.at(-1).names[part]))]
    const brewed = names.filter((name) => name !== 'xcode')
    return [
      ...(names.includes('xcode') ? ['xcode-select --install'] : []),
      ...(brewed.length > 0 ? [`brew install ${brewed.join(' ')}`] : []),
    ].join(' && ')
  }
  const system = detectSystem()
  if (!system) {
    const words = {
      compiler: 'a C++17 compiler (GCC 10 or newer, or clang)',
      make: 'make or ninja',
      cmake: `CMake ${MINIMUM_CMAKE.join('.')} or newer`,
    }
    return `install ${parts.map((part) => words[part]).join(', ')}`
  }
  const sudo = process.getuid?.() === 0 ? '' : 'sudo '
  const update = system.tool === 'apt-get' ? `${sudo}apt-get update && ` : ''
  return `${update}${sudo}${system.install} ${parts.map((part) => system.names[part]).join(' ')}`
}

/** The parts that are not on the PATH at all. Quick: starts no process. */
export function missingPrograms() {
  const compiler = findProgram(...[process.env.CXX?.split(' ')[0]].filter(Boolean), 'c++', 'g++', 'clang++')
  return [
    ...(compiler ? [] : ['compiler']),
    ...(findProgram('make', 'gmake', 'ninja') ? [] : ['make']),
    ...(findProgram('cmake') ? [] : ['cmake']),
  ]
}

/**
 * Tries the tools.
 *
 * @returns {{ part: string, text: string }[]} The problems: none when the addon can be compiled.
 */
export function checkToolchain() {
  const missing = missingPrograms()
  const problems = []
  if (missing.includes('compiler')) {
    problems.push({ part: 'compiler', text: 'a C++17 compiler (GCC 10 or newer, or clang) was not found' })
  } else {
    const text = compilerProblem()
    if (text) problems.push({ part: 'compiler', text })
  }
  if (missing.includes('make')) problems.push({ part: 'make', text: 'neither make nor ninja was found' })
  if (missing.includes('cmake')) {
    problems.push({ part: 'cmake', text: `CMake ${MINIMUM_CMAKE.join('.')} or newer was not found` })
  } else {
    const text = cmakeProblem()
    if (text) problems.push({ part: 'cmake', text })
  }
  return problems
}

function compilerProblem() {
  const [name, ...options] = process.env.CXX?.split(' ').filter(Boolean) ?? []
  const compiler = findProgram(...[name].filter(Boolean), 'c++', 'g++', 'clang++')
  // The header is read too: a compiler without its standard library is a common half installation.
  const source = [
    '#include <optional>',
    '#include <filesystem>',
    '#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 10',
    '#error too old',
    '#endif',
    'std::optional<int> x;',
  ].join('\n')
  const probe = spawnSync(compiler, [...options, '-std=c++17', '-x', 'c++', '-fsyntax-only', '-'], {
    input: source + '\n',
    encoding: 'utf8',
  })
  if (probe.status === 0) return undefined
  const reason = probe.error?.message ?? probe.stderr.split('\n').find((line) => /error/i.test(line)) ?? ''
  return `${compiler} cannot compile C++17 (GCC 10 or newer, or clang, is needed)${reason && `: ${reason.trim()}`}`
}

function cmakeProblem() {
  const cmake = findProgram('cmake')
  const { stdout, status, error } = spawnSync(cmake, ['--version'], { encoding: 'utf8' })
  if (status !== 0) return `${cmake} does not run${error ? `: ${error.message}` : ''}`
  const [version, major, minor] = /(\d+)\.(\d+)[.\d]*/.exec(stdout) ?? ['unknown', 0, 0]
  const enough =
    Number(major) > MINIMUM_CMAKE[0] ||
    (Number(major) === MINIMUM_CMAKE[0] && Number(minor) >= MINIMUM_CMAKE[1])
  if (enough) return undefined
  return (
    `CMake ${MINIMUM_CMAKE.join('.')} or newer is needed, ${cmake} is ${version} ` +
    '(where the system has no newer one: python3 -m pip install cmake)'
  )
}

/** What to tell the user about the problems of checkToolchain. */
export function describeProblems(problems) {
  const parts = [...new Set(problems.map(({ part }) => part))]
  return [
    'sparsegpt: no prebuilt binary fits this machine, and the native addon cannot be compiled here:',
    ...problems.map(({ text }) => `  - ${text}`),
    'Install what is missing, then run the command again:',
    `  ${installCommand(parts)}`,
  ].join('\n')
}

/** True when this Linux is a Debian or one of its descendants. */
export function isDebianLike() {
  try {
    const release = readFileSync('/etc/os-release', 'utf8')
    return /^(ID|ID_LIKE)=.*\b(debian|ubuntu)\b/m.test(release) && Boolean(findProgram('apt-get'))
  } catch {
    return false
  }
}

if (process.argv[1] && realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url))) {
  const problems = checkToolchain()
  if (problems.length > 0) {
    console.error(describeProblems(problems))
    process.exit(1)
  }
  console.log(`compiler  ${findProgram('c++', 'g++', 'clang++')}\ncmake     ${findProgram('cmake')}`)
}
