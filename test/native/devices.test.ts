import { describe, expect, test } from '@jest/globals'
import { devices, pruneLayer, SparseGptError } from '../../src/index.js'
import { nativeAddon } from '../../src/native/addon.js'
import { Device } from '../../src/native/device.js'

const gpu = nativeAddon().probeCudaDevice().reason === ''

describe('devices', () => {
  test('lists the CPU, and CUDA with its name or the reason why there is none', () => {
    const [cpu, cuda, ...others] = devices()
    expect(others).toEqual([])
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
    expect(device.kind).toBe(gpu ? 'cuda' : 'cpu')
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
})
