#!/usr/bin/env node
// Downloads cuBLAS and cuSOLVER with their headers from PyPI into build/cuda-libraries (1.2 GB), for machines that have nvcc but
// not these. NVIDIA's packages; their licences come with them.
//
//   node scripts/cuda-libraries.mjs

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, realpathSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root } from './install.mjs'
import { findProgram } from './toolchain.mjs'

// Of CUDA 13.x, which the major version of the toolkit has to match.
const PACKAGES = [
  'nvidia-cublas==13.1.1.3',
  'nvidia-cusolver==12.0.4.66',
  'nvidia-cusparse==12.6.3.3',
  'nvidia-nvjitlink>=13,<14',
  'nvidia-cuda-nvrtc>=13,<14',
]

export const cudaLibraries = join(root, 'build', 'cuda-libraries')

/** True when an earlier download is complete. */
export function haveCudaLibraries() {
  const nvidia = join(cudaLibraries, 'nvidia')
  return (
    existsSync(nvidia) &&
    readdirSync(nvidia).some((name) => existsSync(join(nvidia, name, 'include', 'cublas_v2.h')))
  )
}

/** Downloads what is missing. Returns what went wrong, or undefined. */
export function downloadCudaLibraries() {
  if (haveCudaLibraries()) return undefined
  const python = findProgram('python3', 'python')
  if (!python || spawnSync(python, ['-m', 'pip', '--version'], { stdio: 'ignore' }).status !== 0) {
    return 'cuBLAS and cuSOLVER are not in the CUDA toolkit, and without Python with pip they cannot be downloaded'
  }
  console.log('sparsegpt: downloading cuBLAS and cuSOLVER from PyPI (1.2 GB unpacked)')
  const unfinished = `${cudaLibraries}.part`
  rmSync(unfinished, { recursive: true, force: true })
  const options = [
    '--quiet',
    '--disable-pip-version-check',
    '--no-deps',
    '--no-cache-dir',
    '--target',
    unfinished,
  ]
  const { status, stderr } = spawnSync(python, ['-m', 'pip', 'install', ...options, ...PACKAGES], {
    encoding: 'utf8',
  })
  if (status !== 0) return `pip could not download cuBLAS and cuSOLVER:\n${stderr}`
  rmSync(cudaLibraries, { recursive: true, force: true })
  renameSync(unfinished, cudaLibraries)
  return undefined
}

if (process.argv[1] && realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url))) {
  const problem = downloadCudaLibraries()
  if (problem) {
    console.error(`sparsegpt: ${problem}`)
    process.exit(1)
  }
  console.log(`sparsegpt: cuBLAS and cuSOLVER are in ${cudaLibraries}`)
}
