import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from '@jest/globals'
import { bitmask } from '../../src/files/encodings/bitmask.js'
import { readSafetensorsHeader } from '../../src/files/safetensors.js'
import { Device, type DType } from '../../src/native/device.js'

/** What compressed-tensors has made of some matrices: bitmask.py. */
const golden = fileURLToPath(new URL('bitmask.safetensors', import.meta.url))

describe('the encoding bitmask', () => {
  const device = new Device('cpu', 1)
  afterAll(() => device.close())

  /** The parts of a matrix by name, with their bytes; `dtype` is the file's. */
  const encoded = async (name: string, dtype: 'F32' | 'BF16' | 'F16', shape: number[], bytes: Uint8Array) => {
    const types: Record<string, DType> = { F32: 'float32', BF16: 'bfloat16', F16: 'float16' }
    const matrix = device.upload(bytes, shape, types[dtype])
    const parts = await bitmask.encode(device, { name, dtype, shape, matrix, mask: undefined })
    const read = parts.map(async ({ tensor, ...layout }) => {
      const { buffer } = await device.read(tensor)
      tensor.dispose()
      return { ...layout, bytes: Buffer.from(buffer) }
    })
    matrix.dispose()
    return Promise.all(read)
  }

  test.each([
    ['a.weight', 'F32', [5, 13]],
    ['b.weight', 'BF16', [9, 64]],
    ['c.weight', 'F16', [4, 37]],
  ] as const)('gives the very tensors of compressed-tensors: %s, %s', async (name, dtype, shape) => {
    const contents = await readFile(golden)
    const { tensors } = await readSafetensorsHeader(golden)
    const find = (wanted: string) => {
      const { offset, bytes, ...layout } = tensors.find((tensor) => tensor.name === wanted)!
      return { layout, bytes: contents.subarray(offset, offset + bytes) }
    }
    const dense = find(name)
    expect(dense.layout).toMatchObject({ dtype, shape })
    const parts = await encoded(name, dtype, [...shape], Uint8Array.from(dense.bytes))
    const prefix = name.slice(0, 1)
    expect(parts.map((part) => part.name)).toEqual(
      ['shape', 'compressed', 'bitmask', 'row_offsets'].map((part) => `${prefix}.${part}`),
    )
    for (const part of parts) {
      const { layout, bytes } = find(part.name)
      expect([part.name, part.dtype, part.shape]).toEqual([layout.name, layout.dtype, layout.shape])
      expect(part.bytes.equals(bytes)).toBe(true)
    }
  })

  test('keeps a negative zero, which compressed-tensors would lose', async () => {
    const values = Float32Array.from({ length: 64 }, (_, i) => (i === 5 ? -0 : i === 9 ? NaN : 0))
    const parts = await encoded('x.weight', 'F32', [1, 64], new Uint8Array(values.buffer))
    expect(parts[1]).toMatchObject({ name: 'x.compressed', shape: [2] })
    expect(parts[1]!.bytes.subarray(0, 4)).toEqual(Buffer.from([0, 0, 0, 0x80]))
  })

  test('leaves a matrix as it is that would not become smaller', async () => {
    const values = new Float32Array(64).fill(1)
    const parts = await encoded('x.weight', 'F32', [1, 64], new Uint8Array(values.buffer))
    expect(parts.map(({ name, shape }) => [name, shape])).toEqual([['x.weight', [1, 64]]])
  })
})
