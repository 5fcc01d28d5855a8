#!/usr/bin/env node
// Builds and runs the C++ tests.
//
//   node scripts/test-native.mjs [--sanitizers] [ARGUMENT...]      other arguments go to the test program
//
// With --sanitizers they are built and run with AddressSanitizer and UBSan, then with ThreadSanitizer.
//
// Also checks that no kernel object holds code that the linker could pick for another instruction set.

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join, relative } from 'node:path'
import { jobs, root } from './install.mjs'
import { checkToolchain, describeProblems, findProgram } from './toolchain.mjs'

const WIDE_ISAS = ['avx2', 'avx512', 'avx512bf16', 'amx']
const TEST_MINUTES = 4
const SANITIZED_MINUTES = 30
const SANITIZERS = ['address,undefined', 'thread']

function quietly(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  if (status === 0) {
    // Warnings of a build that passes are worth seeing.
    return { ok: true, stdout, stderr }
  }
  process.stdout.write(stdout ?? '')
  process.stderr.write((stderr ?? '') + (error ? `${error.message}\n` : ''))
  return { ok: false }
}

function configure(folder, sanitize) {
  const args = ['-S', '.', '-B', folder, '-DCMAKE_BUILD_TYPE=Release']
  const generator = findProgram('ninja') ? ['-G', 'Ninja'] : []
  const full = [...args, ...generator, '-DSPARSEGPT_TESTS=ON', `-DSPARSEGPT_SANITIZE=${sanitize}`]
  const first = existsSync(join(root, folder, 'CMakeCache.txt'))
    ? spawnSync('cmake', full, { cwd: root, stdio: 'ignore' })
    : undefined
  if (first?.status === 0) return true
  // A cache from another place or generator.
  if (first) rmSync(join(root, folder), { recursive: true, force: true })
  return quietly('cmake', full).ok
}

/** Weak functions of the wide kernels that are not in their own namespace: see CMakeLists.txt. */
function strayKernelSymbols(folder) {
  const nm = findProgram('nm')
  if (!nm || process.platform !== 'linux') return []
  const stray = []
  for (const isa of WIDE_ISAS) {
    const objects = join(root, folder, 'CMakeFiles', `sparsegpt_kernels_${isa}.dir`)
    if (!existsSync(objects)) continue
    for (const name of readdirSync(objects, { recursive: true }).filter((file) => file.endsWith('.o'))) {
      const { stdout } = spawnSync(nm, ['-C', '--defined-only', join(objects, name)], { encoding: 'utf8' })
      for (const line of stdout.split('\n')) {
        const [, symbol] = /^[0-9a-f]+ [Wu] (.*)$/.exec(line) ?? []
        if (symbol && !symbol.includes(`${isa}::`))
          stray.push(`${isa} ${relative(objects, join(objects, name))}: ${symbol}`)
      }
    }
  }
  return stray
}

/** The program that starts the tests: ThreadSanitizer cannot place its memory where addresses are random. */
function launcher(sanitize) {
  const setarch = sanitize === 'thread' ? findProgram('setarch') : undefined
  return setarch ? [setarch, '--addr-no-randomize'] : []
}

function runTests(folder, programArguments, sanitize = '') {
  const start = performance.now()
  if (!configure(folder, sanitize)) return 'configuring failed'
  // Benchmarks are built with the plain tests only.
  const target = sanitize ? ['--target', 'sparsegpt_tests'] : []
  const build = quietly('cmake', ['--build', folder, ...target, '--parallel', String(jobs())])
  if (!build.ok) return 'compiling failed'
  const warnings = `${build.stdout}\n${build.stderr}`.split('\n').filter((line) => /\bwarning:/.test(line))
  for (const line of warnings) console.log(line)
  console.log(
    `native tests ${sanitize ? `with sanitizers (${sanitize}) ` : ''}built in ${((performance.now() - start) / 1000).toFixed(0)} s`,
  )

  // Sanitizers add weak symbols of their own.
  const stray = sanitize ? [] : strayKernelSymbols(folder)
  if (stray.length > 0) {
    console.error('weak symbols in wide kernels, which the linker may give to baseline callers:')
    for (const line of stray) console.error(`  ${line}`)
    return 'weak symbols in kernels'
  }
  const program = join(root, folder, 'sparsegpt_tests')
  if (!existsSync(program)) return 'native/test has no tests'
  // A deadlock must fail the run, not hold it up for ever.
  const minutes = sanitize ? SANITIZED_MINUTES : TEST_MINUTES
  const [command, ...args] = [...launcher(sanitize), program, ...programArguments]
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: sanitize ? { ...process.env, SPARSEGPT_TEST_CASES: 'few' } : process.env,
    timeout: minutes * 60_000,
    killSignal: 'SIGKILL',
  })
  if (error?.code === 'ETIMEDOUT') {
    return `the test named last was still running after ${minutes} minutes`
  }
  return status === 0 ? undefined : `the test program ended with ${signal ?? `exit code ${status}`}`
}

const problems = checkToolchain()
if (problems.length > 0) {
  console.error(describeProblems(problems))
  process.exit(1)
}
const sanitizers = process.argv.includes('--sanitizers')
const rest = process.argv.slice(2).filter((argument) => argument !== '--sanitizers')
const failure = sanitizers
  ? SANITIZERS.map((names) => runTests(`build/native-tests-${names.replace(',', '-')}`, rest, names)).find(
      Boolean,
    )
  : runTests('build/native-tests', rest)
if (failure) console.error(`FAILED ${failure}`)
process.exit(failure ? 1 : 0)
