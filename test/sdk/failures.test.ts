import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { writeTinyModel } from '../tiny-model.js'

const program = fileURLToPath(new URL('failing-device.mjs', import.meta.url))
const dist = fileURLToPath(new URL('../../dist', import.meta.url))

test('every call of the device fails once: each job rejects with a SparseGptError, and no rejection is left unhandled', async () => {
  const gpt2 = await writeTinyModel(await temporaryFolder(), 'gpt2')
  const llama = await writeTinyModel(await temporaryFolder(), 'llama')
  const { stdout } = await promisify(execFile)(process.execPath, [
    program,
    dist,
    gpt2,
    llama,
    await temporaryFolder(),
  ])
  const outcomes = JSON.parse(stdout)
  expect(outcomes).toMatchObject({ untyped: [], unhandled: [], survived: [] })
  expect(outcomes.runs).toBeGreaterThan(200)
})
