// What prebuilds/ may hold, and whether what lies there belongs to these sources.

import { createHash } from 'node:crypto'
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs'
import { dirname, join, relative, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = dirname(dirname(fileURLToPath(import.meta.url)))
export const prebuilds = join(root, 'prebuilds')
export const manifestPath = join(prebuilds, 'manifest.json')
export const licencesPath = join(prebuilds, 'THIRD-PARTY-LICENCES.txt')

/**
 * The systems that binaries are made for. `file`: the name by which node-gyp-build finds it; `zig`: the compiler's target, for glibc with the
 * oldest version that has to do; `system` and `processor`: what CMake calls them; `optional`: a release may go without it.
 */
export const targets = [
  {
    file: 'linux-x64/sparsegpt.glibc.node',
    zig: 'x86_64-linux-gnu.2.28',
    system: 'Linux',
    processor: 'x86_64',
  },
  { file: 'linux-x64/sparsegpt.musl.node', zig: 'x86_64-linux-musl', system: 'Linux', processor: 'x86_64' },
  {
    file: 'linux-arm64/sparsegpt.glibc.node',
    zig: 'aarch64-linux-gnu.2.28',
    system: 'Linux',
    processor: 'aarch64',
  },
  {
    file: 'linux-arm64/sparsegpt.musl.node',
    zig: 'aarch64-linux-musl',
    system: 'Linux',
    processor: 'aarch64',
  },
  // Nobody has run these yet.
  {
    file: 'darwin-x64/sparsegpt.node',
    zig: 'x86_64-macos.11.0',
    system: 'Darwin',
    processor: 'x86_64',
    optional: true,
  },
  {
    file: 'darwin-arm64/sparsegpt.node',
    zig: 'aarch64-macos.11.0',
    system: 'Darwin',
    processor: 'arm64',
    optional: true,
  },
]

export const sha256 = (data) => createHash('sha256').update(data).digest('hex')

/** What the binaries are made of: the C++ sources without the libraries that are built apart, and the build's own files. */
export const nativeSources = () =>
  [
    'CMakeLists.txt',
    'native/core',
    'native/cpu',
    'native/cuda',
    'native/mpi',
    'native/addon',
    'native/backends.cpp',
  ]
    .flatMap((name) => filesBelow(join(root, name)))
    .filter((path) => /\.(h|cpp|txt|ld)$/.test(path))

function filesBelow(path) {
  if (!statSync(path).isDirectory()) return [path]
  return readdirSync(path)
    .sort()
    .flatMap((name) => filesBelow(join(path, name)))
}

/** A digest of the names and contents of the sources. */
export function sourcesDigest() {
  const lines = nativeSources().map(
    (path) => `${relative(root, path).split(sep).join('/')} ${sha256(readFileSync(path))}\n`,
  )
  return sha256(lines.join(''))
}

/** prebuilds/manifest.json: what each binary was made of and with. */
export function readManifest() {
  return existsSync(manifestPath) ? JSON.parse(readFileSync(manifestPath, 'utf8')) : { binaries: {} }
}
