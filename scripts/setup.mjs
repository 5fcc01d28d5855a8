#!/usr/bin/env node
// Brings a checkout, even a fresh clone on a bare machine, to where tests and the demo can run: system packages, npm
// packages, the addon, dist/. Says nothing when there is nothing to do.
//
//   node scripts/setup.mjs [--redis]      --redis: also the server that a test of the examples starts

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { addonIsFresh, buildAddon, BuildError, newest, root } from './install.mjs'
import { installDebianPackages } from './system-packages.mjs'
import { checkToolchain, describeProblems, findProgram, missingPrograms } from './toolchain.mjs'

function run(command, args, options = {}) {
  const { status, error, signal } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options })
  if (error) console.error(`${command}: ${error.message}`)
  return { ok: status === 0, code: status ?? (signal ? 128 : 1) }
}

function fail(message, code = 1) {
  console.error(message)
  process.exit(code || 1)
}

const say = (text) => console.log(`setup: ${text}`)

/** Installs what is missing to compile the addon. */
function systemPackages() {
  const wanted = missingPrograms()
  if (wanted.length === 0) return
  const names = { compiler: 'g++', make: 'make', cmake: 'cmake' }
  installDebianPackages(wanted.map((part) => names[part]))
  const problems = checkToolchain()
  if (problems.length > 0) fail(describeProblems(problems))
}

/** Installs Redis, which the queue among the examples needs. */
function redis() {
  if (findProgram('redis-server')) return
  installDebianPackages(['redis-server'])
  if (!findProgram('redis-server')) fail('setup: redis-server is missing: install the package redis-server')
}

/** True when node_modules holds what package-lock.json names. By content: a git checkout changes the times. */
function packagesAreInstalled() {
  const installedPath = join(root, 'node_modules', '.package-lock.json')
  if (!existsSync(installedPath)) return false
  const lockPath = join(root, 'package-lock.json')
  if (newest([installedPath]) >= newest([lockPath])) return true
  const wanted = JSON.parse(readFileSync(lockPath, 'utf8')).packages
  const installed = JSON.parse(readFileSync(installedPath, 'utf8')).packages
  return Object.entries(wanted).every(([path, { version, optional, peer }]) => {
    if (path === '') return true
    // Optional packages of other platforms are not there.
    if (!installed[path]) return Boolean(optional || peer)
    return installed[path].version === version
  })
}

const mpiIsFresh = () =>
  newest([join(root, 'build', 'Release', 'libsparsegpt_mpi.so')]) >=
  newest(['library.cpp', 'mpi_library.h'].map((name) => join(root, 'native', 'mpi', name)))

function distIsFresh() {
  const built = newest([join(root, 'dist')], (path) => path.endsWith('.js'))
  // tsc writes nothing when there is an error (--noEmitOnError), so new files mean a build that passed.
  return (
    built > 0 &&
    built >= newest(['src', 'tsconfig.json', 'tsconfig.build.json'].map((name) => join(root, name)))
  )
}

async function main() {
  const installed = packagesAreInstalled()
  if (!installed || !addonIsFresh() || missingPrograms().length > 0) systemPackages()

  if (!installed) {
    say('npm ci (this compiles the addon too)')
    const npm = process.env.npm_execpath
    const args = ['ci', '--no-audit', '--no-fund', '--loglevel=error']
    // npm itself runs scripts/install.mjs and the TypeScript build.
    const { ok, code } = npm?.endsWith('.js') ? run(process.execPath, [npm, ...args]) : run('npm', args)
    if (!ok) fail('setup: npm ci failed, see above', code)
  }

  if (!addonIsFresh()) {
    try {
      await buildAddon()
    } catch (error) {
      fail(error instanceof BuildError ? error.message : error)
    }
  }

  // Where there is no MPI, what needs it is not tested.
  if (findProgram('mpicxx') && !mpiIsFresh()) {
    const { ok, code } = run(process.execPath, ['scripts/build-mpi.mjs'])
    if (!ok) fail('setup: compiling the library for MPI failed, see above', code)
  }

  if (!distIsFresh()) {
    say('compiling TypeScript')
    const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
    const { ok, code } = run(process.execPath, [tsc, '-p', 'tsconfig.build.json', '--noEmitOnError'])
    if (!ok) fail('setup: the TypeScript sources have errors, see above', code)
  }

  if (process.argv.includes('--redis')) redis()
}

await main()
