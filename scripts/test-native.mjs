#!/usr/bin/env node
// Builds and runs the C++ tests.
//
//   node scripts/test-native.mjs [ARGUMENT...]      arguments go to the test program
//
// Also checks that no kernel object holds code that the linker could pick for another instruction set.

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join, relative } from 'node:path'
import { jobs, root } from './install.mjs'
import { checkToolchain, describeProblems, findProgram } from './toolchain.mjs'

const WIDE_ISAS = ['avx2', 'avx512', 'avx512bf16']
const TEST_MINUTES = 4

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

function configure(folder) {
  const args = ['-S', '.', '-B', folder, '-DCMAKE_BUILD_TYPE=Release']
  const generator = findProgram('ninja') ? ['-G', 'Ninja'] : []
  const full = [...args, ...generator, '-DSPARSEGPT_TESTS=ON']
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

function runTests(folder) {
  const start = performance.now()
  if (!configure(folder)) return 'configuring failed'
  const build = quietly('cmake', ['--build', folder, '--parallel', String(jobs())])
  if (!build.ok) return 'compiling failed'
  const warnings = `${build.stdout}\n${build.stderr}`.split('\n').filter((line) => /\bwarning:/.test(line))
  for (const line of warnings) console.log(line)
  console.log(`native tests built in ${((performance.now() - start) / 1000).toFixed(0)} s`)

  const stray = strayKernelSymbols(folder)
  if (stray.length > 0) {
    console.error('weak symbols in wide kernels, which the linker may give to baseline callers:')
    for (const line of stray) console.error(`  ${line}`)
    return 'weak symbols in kernels'
  }
  const program = join(root, folder, 'sparsegpt_tests')
  if (!existsSync(program)) return 'native/test has no tests'
  // A deadlock must fail the run, not hold it up for ever.
  const { status, signal, error } = spawnSync(program, process.argv.slice(2), {
    cwd: root,
    stdio: 'inherit',
    timeout: TEST_MINUTES * 60_000,
    killSignal: 'SIGKILL',
  })
  if (error?.code === 'ETIMEDOUT') {
    return `the test named last was still running after ${TEST_MINUTES} minutes`
  }
  return status === 0 ? undefined : `the test program ended with ${signal ?? `exit code ${status}`}`
}

const problems = checkToolchain()
if (problems.length > 0) {
  console.error(describeProblems(problems))
  process.exit(1)
}
const failure = runTests('build/native-tests')
if (failure) console.error(`FAILED ${failure}`)
process.exit(failure ? 1 : 0)
