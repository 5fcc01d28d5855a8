#!/usr/bin/env node
// Compiles what calls MPI: build/Release/libsparsegpt_mpi.so, beside the addon, which loads it when a job runs on several ranks.
//
//   node scripts/build-mpi.mjs [--optional]      --optional: without MPI say so and succeed
//
// Needs an MPI with its compiler wrapper (mpicxx): Open MPI or MPICH. See docs/many-machines.md.

import { buildLibrary } from './build-library.mjs'
import { checkToolchain, describeProblems, detectSystem, findProgram } from './toolchain.mjs'

// What each package manager calls Open MPI with its headers.
const packages = {
  'apt-get': 'openmpi-bin libopenmpi-dev',
  dnf: 'openmpi-devel',
  pacman: 'openmpi',
  apk: 'openmpi-dev',
  brew: 'open-mpi',
}

function build() {
  if (!findProgram('mpicxx', 'mpic++')) {
    const system = detectSystem()
    const advice = system ? `: ${system.install} ${packages[system.tool]}` : ''
    const message = `MPI is not built: mpicxx was not found (install Open MPI or MPICH with its headers${advice})`
    if (!process.argv.includes('--optional')) return message
    console.log(`sparsegpt: skipped: ${message}`)
    return undefined
  }
  const problems = checkToolchain()
  if (problems.length > 0) return describeProblems(problems)
  return buildLibrary({ name: 'mpi', option: 'SPARSEGPT_MPI', subject: 'the library for MPI' })
}

const problem = build()
if (problem) {
  console.error(`sparsegpt: ${problem}`)
  process.exit(1)
}
