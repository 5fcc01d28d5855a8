#!/usr/bin/env node
// Runs by hand, for longer, what the tests do for a minute: mutated inputs, kills and resumes, loads and aborts.
//
//   npm run fuzz -- [--seconds 60] [--inputs N] [--seed 1]    mutated inputs, from number SEED on, until either limit
//   npm run fuzz -- --kills 100                               jobs that are killed at random moments, and resumed
//   npm run fuzz -- --loads 500                               models loaded; half of them prune and are stopped
//
// An input depends on its number alone: --seed N --inputs 1 does that of a fault again, and its files are kept.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { parseArgs } from 'node:util'
import { root } from './install.mjs'

const type = 'string'
const options = { seconds: { type }, inputs: { type }, seed: { type }, kills: { type }, loads: { type } }
const { values } = parseArgs({ options })
for (const [name, value] of Object.entries(values)) {
  if (/^[1-9]\d*$/.test(value)) continue
  console.error(`--${name} takes a whole number, not ${value}`)
  process.exit(2)
}
const { seconds, inputs, seed, kills, loads } = values
const signals = ['SIGINT', 'SIGTERM', 'SIGHUP']

// In band: Jest's worker processes would go on without it.
const jest = ['--experimental-vm-modules', '--no-warnings', 'node_modules/jest/bin/jest.js', '--runInBand']
// Some of them are among the long ones.
const match = ['--testMatch', '**/*.{test,long}.ts', '--testPathPatterns']

async function run(test, environment) {
  const given = Object.entries(environment).filter(([, value]) => value !== undefined)
  const child = spawn(process.execPath, [...jest, ...match, test, '--testTimeout', '7200000'], {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...Object.fromEntries(given) },
  })
  const pass = (signal) => child.kill(signal)
  for (const signal of signals) process.on(signal, pass)
  const [status, signal] = await once(child, 'exit')
  for (const signal of signals) process.off(signal, pass)
  if (signal) process.kill(process.pid, signal)
  if (status !== 0) process.exitCode = 1
}

if (kills) await run('test/cli/.*resume', { SPARSEGPT_KILLS: kills })
if (loads) await run('test/process/leaks', { SPARSEGPT_LOADS: loads })
if (seconds || inputs || seed || !(kills || loads))
  await run('test/fuzz', {
    SPARSEGPT_FUZZ_SECONDS: seconds ?? (inputs ? '86400' : '60'),
    SPARSEGPT_FUZZ_INPUTS: inputs,
    SPARSEGPT_FUZZ_SEED: seed,
  })
