import { describe, expect, test } from '@jest/globals'
import { execFileSync } from 'node:child_process'
import { copyFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { devices, loadModel, pruneLayer, SparseGptError } from '../../src/index.js'
import { nativeAddon } from '../../src/native/addon.js'
import { Device } from '../../src/native/device.js'

import { temporaryFolder } from '../temporary.js'

const gpu = nativeAddon().probe('cuda').devices.length > 0

describe('devices', () => {
  test('lists the CPU, and CUDA with its name or the reason why there is none', () => {
    const [cpu, cuda, ...others] = devices()
    expect(others.every(({ kind }) => /^cuda:\d+$/.test(kind))).toBe(true)
    expect(cpu).toEqual({
      kind: 'cpu',
      available: true,
      name: expect.stringMatching(/, \d+ threads$/),
    })
    if (gpu) {
      const memory = expect.any(Number)
      expect(cuda).toEqual({ kind: 'cuda', available: true, name: expect.any(String), memory })
    } else {
      const reason = expect.stringMatching(
        /not built|cannot be loaded|another version|driver|no NVIDIA GPU|compute capability/,
      )
      expect(cuda).toEqual({ kind: 'cuda', available: false, reason: reason })
    }
  })

  test('"auto" takes the GPU or falls back to the CPU', async () => {
    const device = new Device('auto')
    expect(device.name).toBe(gpu ? 'cuda' : 'cpu')
    await device.close()
  })

  const withoutGpu = gpu ? test.skip : test
  withoutGpu('"cuda" without a GPU is an error that says why and what to do', async () => {
    expect.assertions(6)
    const weight = new Float32Array(16).fill(1)
    const calls = [
      () => Promise.resolve(new Device('cuda')),
      () => pruneLayer({ weight, rows: 4, columns: 4, method: 'magnitude', device: 'cuda' }),
    ]
    for (const call of calls) {
      try {
        await call()
      } catch (error) {
        expect(error).toBeInstanceOf(SparseGptError)
        expect(error).toMatchObject({ code: 'DEVICE_UNAVAILABLE' })
        expect((error as Error).message).toMatch(
          /^device "cuda" is not available: .*Use device "cpu", or "auto"/,
        )
      }
    }
  })

  withoutGpu('"auto" computes without a GPU', async () => {
    const result = await pruneLayer({
      weight: Float32Array.from({ length: 16 }, (_, i) => i + 1),
      rows: 4,
      columns: 4,
      method: 'magnitude',
      device: 'auto',
    })
    expect(Array.from(result.mask).indexOf(0)).toBe(9)
  })

  test('"cuda:1" opens the second device of its kind', async () => {
    const addon = nativeAddon()
    const opened: unknown[] = []
    const openDevice = (kind: string, index: number, threads: number) => {
      opened.push([kind, index])
      return addon.openDevice('cpu', 0, threads)
    }
    const device = new Device('cuda:1', 1, { ...addon, openDevice })
    expect(opened).toEqual([['cuda', 1]])
    expect(device.name).toBe('cuda:1')
    await device.close()
  })

  test.each(['cuda:x', 'cuda:', 'CUDA', 'gpu', '', 'cpu:1:2'])('"%s" is no device', async (name) => {
    const loading = loadModel('nowhere', { device: name as 'cpu' })
    await expect(loading).rejects.toMatchObject({ code: 'INVALID_OPTION' })
    await expect(loading).rejects.toThrow(/option device: must be "auto", "cpu", "cuda"/)
  })

  withoutGpu('a library is found where build:cuda puts it, wherever the addon lies', async () => {
    const [prebuilt, built] = [await temporaryFolder(), await temporaryFolder()]
    await copyFile(join('build', 'Release', 'sparsegpt.node'), join(prebuilt, 'sparsegpt.node'))
    await writeFile(join(built, 'libsparsegpt_cuda.so'), 'no library')
    const script = `
      const addon = require(process.argv[1])
      const before = addon.probe('cuda').reason
      addon.addLibraryFolder(process.argv[2])
      console.log(JSON.stringify([before, addon.probe('cuda').reason]))`
    const run = execFileSync(process.execPath, ['-e', script, join(prebuilt, 'sparsegpt.node'), built])
    const [before, after] = JSON.parse(run.toString()) as [string, string]
    expect(before).toMatch(/is not built/)
    expect(after).not.toMatch(/is not built/)
  })
})
