#!/usr/bin/env node
// Compiles the CUDA backend: build/Release/libsparsegpt_cuda.so, beside the addon, which loads it when it is wanted.
//
//   node scripts/build-cuda.mjs [--optional]      --optional: without nvcc say so and succeed
//
// Needs nvcc; cuBLAS and cuSOLVER are downloaded where the toolkit has none (cuda-libraries.mjs). See docs/cuda.md.

import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { buildLibrary } from './build-library.mjs'
import { downloadCudaLibraries } from './cuda-libraries.mjs'
import { checkToolchain, describeProblems, findProgram } from './toolchain.mjs'

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
  return buildLibrary({
    name: 'cuda',
    option: 'SPARSEGPT_CUDA',
    subject: 'the CUDA backend',
    mend: (output) => output.includes('cuda-libraries.mjs') && (downloadCudaLibraries() ?? true),
  })
}

const problem = build()
if (problem) {
  console.error(`sparsegpt: ${problem}`)
  process.exit(1)
}
