#!/usr/bin/env node
// Compiles the CUDA backend: build/Release/libsparsegpt_cuda.so, beside the addon, which loads it when it is wanted.
//
//   node scripts/build-cuda.mjs [--optional]      --optional: without nvcc say so and succeed
//
// Needs nvcc; cuBLAS and cuSOLVER are downloaded where the toolkit has none (cuda-libraries.mjs). See docs/cuda.md.

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { downloadCudaLibraries } from './cuda-libraries.mjs'
import { jobs, root } from './install.mjs'
import { checkToolchain, describeProblems, findProgram } from './toolchain.mjs'

const folder = join(root, 'build', 'cuda')
const output = join(root, 'build', 'Release')

/** nvcc where native/cuda/toolkit.cmake looks for it. */
function findNvcc() {
  const local = existsSync('/usr/local')
    ? readdirSync('/usr/local').filter((name) => name.startsWith('cuda'))
    : []
  const homes = [
    process.env.CUDA_HOME,
    process.env.CUDA_PATH,
    ...local.map((name) => join('/usr/local', name)),
  ]
  const folders = [...homes.filter(Boolean), '/opt/cuda', '/usr/lib/cuda']
  const named = process.env.CUDACXX ? [process.env.CUDACXX] : []
  return findProgram(...named, 'nvcc', ...folders.map((home) => join(home, 'bin', 'nvcc')))
}

function cmake(...args) {
  const { status, stdout, stderr, error } = spawnSync('cmake', args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  return { ok: status === 0, output: `${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}` }
}

function configure() {
  return cmake(
    ...['-S', '.', '-B', folder, '-DCMAKE_BUILD_TYPE=Release', `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${output}`],
    ...['-DSPARSEGPT_CUDA=ON', '-DSPARSEGPT_TESTS=OFF'],
  )
}

function build() {
  const nvcc = findNvcc()
  if (!nvcc) {
    const message =
      'the CUDA backend is not built: nvcc was not found (install the CUDA toolkit, 12.8 or later)'
    if (!process.argv.includes('--optional')) return message
    console.log(`sparsegpt: skipped: ${message}`)
    return undefined
  }
  const problems = checkToolchain()
  if (problems.length > 0) return describeProblems(problems)
  console.log(`sparsegpt: compiling the CUDA backend with ${nvcc} (a minute or two)`)
  const start = performance.now()
  let result = configure()
  if (!result.ok && result.output.includes('cuda-libraries.mjs')) {
    const problem = downloadCudaLibraries()
    if (problem) return problem
    result = configure()
  }
  if (!result.ok && existsSync(folder)) {
    // The cache may be from another place, generator or compiler.
    rmSync(folder, { recursive: true, force: true })
    result = configure()
  }
  if (result.ok) result = cmake('--build', folder, '--target', 'sparsegpt_cuda', '--parallel', String(jobs()))
  if (!result.ok) return `${result.output}\ncompiling the CUDA backend failed, see above`
  for (const line of result.output.split('\n').filter((text) => /\bwarning\b/i.test(text))) console.warn(line)
  console.log(
    `sparsegpt: ${join(output, 'libsparsegpt_cuda.so')} in ${((performance.now() - start) / 1000).toFixed(0)} s`,
  )
  return undefined
}

const problem = build()
if (problem) {
  console.error(`sparsegpt: ${problem}`)
  process.exit(1)
}
