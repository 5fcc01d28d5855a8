import { prune, type PruneOptions } from '../loose-options.js'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeAll, describe, expect, jest, test } from '@jest/globals'
import { loadModel, plan } from '../../src/index.js'
import { Device } from '../../src/native/device.js'
import { readTensors } from '../safetensors-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

const calibration = { tokens: randomTokens(600), samples: 8, sequenceLength: 32 }

let folder: string
beforeAll(async () => {
  folder = await writeTinyModel(await temporaryFolder())
})
afterEach(() => {
  jest.restoreAllMocks()
})

async function pruned(options: PruneOptions) {
  const out = join(await temporaryFolder(), 'out')
  const model = await loadModel(folder, { threads: 1, device: 'cpu' })
  try {
    await prune(model, { calibration, out, ...options })
  } finally {
    await model.dispose()
  }
  return readTensors(join(out, 'model.safetensors'))
}

describe('activations in a file', () => {
  test.each([
    ['block', 'own', 4],
    ['layer', 'own', 4],
    ['block', 'dense', 5],
    ['layer', 'dense', 8],
  ] as const)('change nothing in the result, by %s, target %s', async (sequential, target, least) => {
    const kept = await pruned({ sequential, target })
    const moves = jest.spyOn(Device.prototype, 'offload')
    const offload = await temporaryFolder()
    expect(await pruned({ sequential, target, offload })).toEqual(kept)
    expect(moves.mock.calls.length).toBeGreaterThanOrEqual(least)
    expect(await readdir(offload)).toEqual([])
  })

  test('need a folder that exists', async () => {
    const offload = join(await temporaryFolder(), 'missing')
    await expectError(pruned({ offload }), 'WRITE_FAILED', /cannot create a file in .*missing: No such file/)
  })
})

describe('the memory limit', () => {
  /** More than travel through a block together. */
  const many = { samples: 8000, sequenceLength: 64 }
  const needs = async (offload: boolean) => (await plan(folder, { ...many, offload })).memory.peak

  test('refuses a job before anything is read or written, and says what helps', async () => {
    const out = join(await temporaryFolder(), 'out')
    await expectError(
      pruned({ out, calibration: { file: 'no-such-text.txt' }, memory: '20MB' }),
      'OUT_OF_MEMORY',
      /about 1\d\d\.\d MB are needed, but memory allows 20\.00 MB: use offload \(a folder.*fewer samples/,
    )
    expect(await readdir(join(out, '..'))).toEqual([])
  })

  test('counts what encoding the text takes', async () => {
    const out = join(await temporaryFolder(), 'out')
    const file = join(await temporaryFolder(), 'text.txt')
    await writeFile(file, 'w1 w2 '.repeat(100_000))
    const text = { file, samples: 4, sequenceLength: 32 }
    await expectError(
      pruned({ out, calibration: text, memory: '451MB' }),
      'OUT_OF_MEMORY',
      /encoding the text takes (more than|up to) 0\.\d\d GB, but memory allows 0\.45 GB/,
    )
    expect(await readdir(join(out, '..'))).toEqual([])
    expect(await pruned({ calibration: text, memory: '900MB' })).toBeDefined()
  })

  test('keeps activations in memory when they fit, and in the file when they do not', async () => {
    const moves = jest.spyOn(Device.prototype, 'offload')
    const offload = await temporaryFolder()
    await pruned({ offload, memory: '4 GiB' })
    expect(moves).not.toHaveBeenCalled()
    const [kept, offloaded] = [await needs(false), await needs(true)]
    expect(offloaded).toBeLessThan(kept)
    const options = { calibration: { ...calibration, ...many }, offload, maxBlock: 1 }
    await pruned({ ...options, memory: (kept + offloaded) / 2 })
    expect(moves).toHaveBeenCalled()
    await expectError(pruned({ ...options, memory: offloaded / 2 }), 'OUT_OF_MEMORY', /use dtype "bfloat16"/)
  })

  test.each([['16 gigabytes'], ['-1GB'], ['GB'], [0]])('is no size: %s', async (memory) => {
    await expectError(pruned({ memory }), 'INVALID_OPTION', /option memory: .*(16GB|>0)/)
  })
})
