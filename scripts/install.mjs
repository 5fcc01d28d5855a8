#!/usr/bin/env node
// npm's "install" step: sees to it that an addon is there that loads on this machine.
//
//   node scripts/install.mjs                   a prebuilt binary if one fits, else compile if anything changed
//   node scripts/install.mjs --build [--config=Release|Debug]     compile in any case (make decides what)
//
// The result is build/Release/sparsegpt.node. `npm_config_build_from_source=true` ignores prebuilt binaries.

import { spawn, spawnSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  realpathSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism, totalmem } from 'node:os'
import { dirname, join, relative, sep } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { nativeSources, prebuilds, readManifest, root, sourcesDigest } from './prebuilds.mjs'
import { checkToolchain, describeProblems } from './toolchain.mjs'

export { root }
const require = createRequire(import.meta.url)
// CMake's own files stay out of build/, where node-gyp keeps its Makefile.
const cmakeFolder = join(root, 'build', 'cmake')
const addonPath = (config = 'Release') => join(root, 'build', config, 'sparsegpt.node')

/** The newest modification time (ms) of the files below the paths that the filter lets through; 0 if there are none. */
export function newest(paths, filter = () => true) {
  let time = 0
  for (const path of paths) {
    const stat = statSync(path, { throwIfNoEntry: false })
    if (!stat) continue
    if (stat.isDirectory()) {
      const entries = readdirSync(path).map((name) => join(path, name))
      time = Math.max(time, newest(entries, filter))
    } else if (filter(path)) {
      time = Math.max(time, stat.mtimeMs)
    }
  }
  return time
}

/** True when the compiled addon is newer than everything it is made of. */
export function addonIsFresh() {
  const stat = statSync(addonPath(), { throwIfNoEntry: false })
  return stat !== undefined && stat.mtimeMs >= newest(nativeSources())
}

/** How many compilers to run at once: one for each core, but each may want about a gigabyte. */
export const jobs = () => Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 30)))

/** Compiles the addon. Quiet; what the tools said is shown when they fail. Throws a BuildError. */
export async function buildAddon({ config = 'Release', force = false } = {}) {
  const unlock = await lock()
  try {
    // Another process may have done it while this one waited.
    if (!force && addonIsFresh()) return
    const problems = checkToolchain()
    if (problems.length > 0) throw new BuildError(describeProblems(problems))
    console.log('sparsegpt: compiling the native addon (a minute or two)')
    const start = new Date()

    const options = [
      `--out=${cmakeFolder}`,
      `--config=${config}`,
      `--parallel=${jobs()}`,
      `--CDCMAKE_LIBRARY_OUTPUT_DIRECTORY=${dirname(addonPath(config))}`,
    ]
    const hadCache = existsSync(join(cmakeFolder, 'CMakeCache.txt'))
    let result = cmakeJs('configure', options)
    if (result.status !== 0 && hadCache) {
      // The cache may be from another place, generator or compiler.
      rmSync(cmakeFolder, { recursive: true, force: true })
      result = cmakeJs('configure', options)
    }
    if (result.status === 0) result = cmakeJs('build', options)
    if (result.status !== 0) {
      throw new BuildError(`${result.output}\nsparsegpt: compiling the native addon failed, see above`)
    }
    // The time of the start, so that a source changed meanwhile counts as newer, and one that needed no linking does not.
    utimesSync(addonPath(config), start, start)
    const seconds = ((Date.now() - start.getTime()) / 1000).toFixed(0)
    console.log(`sparsegpt: compiled in ${seconds} s`)
  } finally {
    unlock()
  }
}

export class BuildError extends Error {}

/** Runs cmake-js ('configure' or 'build'). */
export function cmakeJs(command, options) {
  // node-gyp runs this script inside make, whose variables would reach the inner make.
  const env = { ...process.env }
  for (const name of ['MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'MAKEOVERRIDES']) delete env[name]
  const [program, ...args] = cmakeJsProgram(env)
  const { status, stdout, stderr, error } = spawnSync(
    program,
    [...args, command, `--directory=${root}`, ...options],
    { cwd: root, env, encoding: 'utf8', maxBuffer: 2 ** 28 },
  )
  return { status, output: `${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}` }
}

// A checkout has cmake-js. An installed package seldom compiles: npm fetches cmake-js then.
function cmakeJsProgram(env) {
  try {
    const { bin } = require('cmake-js/package.json')
    return [process.execPath, join(dirname(require.resolve('cmake-js/package.json')), bin['cmake-js'])]
  } catch {
    // What the outer npm was told, such as --global, is not meant for this one.
    for (const name of Object.keys(env))
      if (/^npm_config_(global|location|local_prefix)$/i.test(name)) delete env[name]
    const npm = process.env.npm_execpath?.endsWith('npm-cli.js')
      ? [process.execPath, process.env.npm_execpath]
      : ['npm']
    return [...npm, 'exec', '--yes', '--package=cmake-js@8', '--', 'cmake-js']
  }
}

// Two builds in one folder spoil each other: `npm test` in two terminals is enough. The lock is a file with the
// holder's process id; one whose holder is gone is stale.
async function lock() {
  const path = join(root, 'build', '.lock')
  mkdirSync(dirname(path), { recursive: true })
  for (let told = false; ;) {
    try {
      const file = openSync(path, 'wx')
      writeFileSync(file, String(process.pid))
      closeSync(file)
      return () => rmSync(path, { force: true })
    } catch (error) {
      if (error.code === 'ENOENT') {
        mkdirSync(dirname(path), { recursive: true })
        continue
      }
      if (error.code !== 'EEXIST') throw error
    }
    if (!isHeld(path)) {
      rmSync(path, { force: true })
      continue
    }
    if (!told) console.log('sparsegpt: waiting for another build in this folder')
    told = true
    await sleep(500)
  }
}

function isHeld(path) {
  try {
    const pid = Number(readFileSync(path, 'utf8'))
    // Empty for the moment between its making and its writing.
    if (!pid) return Date.now() - statSync(path).mtimeMs < 5000
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** True when prebuilds/ holds a binary for this platform and it loads. */
async function prebuiltFits() {
  if (process.env.npm_config_build_from_source === 'true' || !existsSync(prebuilds)) return false
  let path
  process.env.PREBUILDS_ONLY = '1' // node-gyp-build reads it when it is loaded
  try {
    path = require('node-gyp-build').resolve(root)
  } catch {
    return false
  } finally {
    delete process.env.PREBUILDS_ONLY
  }
  // In a checkout, one that was built from other sources does not count.
  const built = readManifest().binaries[relative(prebuilds, path).split(sep).join('/')]
  if (isCheckout && built?.sources !== sourcesDigest()) return false
  // It may want a newer C library than this system has. Loaded in a child: a bad binary can kill its process.
  const child = spawn(process.execPath, ['-e', 'require(process.argv[1])', path], { stdio: 'ignore' })
  return await new Promise((done) => {
    child.on('error', () => done(false))
    child.on('exit', (status) => done(status === 0))
  })
}

// Only a checkout has the TypeScript sources. In an installed package the times of the files are those of unpacking, and
// say nothing about which of them is older.
const isCheckout = existsSync(join(root, 'src'))

async function main(args) {
  const config = args.find((arg) => arg.startsWith('--config='))?.slice('--config='.length) || 'Release'
  if (args.includes('--build')) return await buildAddon({ config, force: true })
  if (addonIsFresh()) return
  if (await prebuiltFits()) return
  await buildAddon()
}

if (process.argv[1] && realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url))) {
  try {
    await main(process.argv.slice(2))
  } catch (error) {
    console.error(error instanceof BuildError ? error.message : error)
    process.exit(1)
  }
}
