import { write as writeFd } from 'node:fs'
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import type { Encoding, PartLayout } from '../../src/files/encodings/encoding.js'
import { encodings } from '../../src/files/encodings/registry.js'
import { readSafetensorsHeader, serializeHeader, tensorBytes } from '../../src/files/safetensors.js'
import { ShardLayout } from '../../src/files/shard-layout.js'
import { CheckpointWriter } from '../../src/files/writer.js'
import { loadModel } from '../../src/index.js'
import { engineOf } from '../../src/sdk/model.js'
import { FolderDestination } from '../../src/pruning/destination.js'
import { pruneBlocks, selectLayers } from '../../src/pruning/pipeline.js'
import { ProgressMeter } from '../../src/pruning/progress.js'
import { readTensors } from '../safetensors-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'
import { filled, rawFile, writeConfig, writeSafetensors } from './files.js'

const fdWrite = promisify(writeFd)
const first = 'model-00001-of-00002.safetensors'
const second = 'model-00002-of-00002.safetensors'
const index = 'model.safetensors.index.json'

/** The values that the mask leaves, and a bit for each value: 1 = kept. */
const bitmask: Encoding = {
  usesMask: true,
  layout: ({ name, dtype, shape }) => {
    const [rows, columns] = shape as [number, number]
    return [
      { name: `${name}.compressed`, dtype, shape: [rows * columns], varies: true },
      { name: `${name}.bitmask`, dtype: 'U8', shape: [rows, Math.ceil(columns / 8)] },
    ]
  },
  encode: async (device, { name, dtype, shape, matrix, mask }) => {
    const [values, pruned] = [await device.readFloat32(matrix), await device.read(mask!)]
    const [rows, columns] = shape as [number, number]
    const width = Math.ceil(columns / 8)
    const bits = new Uint8Array(rows * width)
    const kept = values.filter((_, i) => pruned[i] === 0)
    for (let i = 0; i < rows * columns; i++) {
      if (pruned[i] === 0)
        bits[Math.floor(i / columns) * width + ((i % columns) >> 3)]! |= 1 << ((i % columns) & 7)
    }
    const encoded = [
      { name: `${name}.compressed`, dtype, shape: [kept.length], tensor: device.upload(kept, [kept.length]) },
      {
        name: `${name}.bitmask`,
        dtype: 'U8' as const,
        shape: [rows, width],
        tensor: device.upload(bits, [rows, width]),
      },
    ]
    await device.synchronize()
    return encoded
  },
}

/** A part of U8 elements, all of them `value`. */
const filling = (name: string, shape: number[], value: number) => ({
  name,
  dtype: 'U8' as const,
  shape,
  store: async (fd: number, position: number) => {
    const bytes = tensorBytes({ dtype: 'U8', shape })
    await fdWrite(fd, new Uint8Array(bytes).fill(value), 0, bytes, position)
  },
})

/** A model of two shards, U8: a [5], b [2, 3] (of 1 and 2), and c [7], d [2, 4], e [9] (of 3, 4, 5). */
async function shardedSource() {
  const work = await temporaryFolder()
  const folder = join(work, 'source')
  await mkdir(folder)
  await writeConfig(folder)
  const b = { ...filled('b', 6, 2), shape: [2, 3] }
  const d = { ...filled('d', 8, 4), shape: [2, 4] }
  await writeSafetensors(join(folder, first), [filled('a', 5, 1), b])
  await writeSafetensors(join(folder, second), [filled('c', 7, 3), d, filled('e', 9, 5)], { shard: 'two' })
  const weight_map = { a: first, b: first, c: second, d: second, e: second }
  await writeFile(join(folder, index), JSON.stringify({ weight_map }))
  return { work, out: join(work, 'out'), source: await openCheckpoint(folder) }
}

/** The single value that fills each tensor of a file, or undefined where there is none. */
async function valuesOf(file: string) {
  const contents = await readFile(file)
  const { tensors } = await readSafetensorsHeader(file)
  return Object.fromEntries(
    tensors.map(({ name, offset, bytes }) => {
      const values = new Set(contents.subarray(offset, offset + bytes))
      expect(values.size).toBeLessThan(2)
      return [name, [...values][0]]
    }),
  )
}

describe('the dense encoding', () => {
  test('gives the bytes of a file that was written in one go, whatever the order', async () => {
    const { out, source } = await shardedSource()
    const options = { force: false, encoding: encodings.dense, encoded: ['b', 'd', 'e'] }
    const writer = await CheckpointWriter.create(source, out, options)
    await writer.write('e', [filling('e', [9], 50)])
    await writer.write('d', [filling('d', [2, 4], 40)])
    await writer.write('b', [filling('b', [2, 3], 20)])
    await writer.commit()
    for (const { file, tensors, metadata } of source.shards) {
      const value: Record<string, number> = { a: 1, b: 20, c: 3, d: 40, e: 50 }
      const { header } = serializeHeader(tensors, metadata)
      const data = tensors.map(({ name, bytes }) => new Uint8Array(bytes).fill(value[name]!))
      expect(await readFile(join(out, file))).toEqual(Buffer.concat([header, ...data]))
    }
    const copied = await readFile(join(out, index))
    expect(copied).toEqual(await readFile(join(source.folder, index)))
  })
})

describe('an encoding with other names and sizes', () => {
  const options = { force: false, encoding: bitmask, encoded: ['b', 'd'] }

  test('gives valid files in which the known tensors come first, and an index of its own', async () => {
    const { out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, options)
    await writer.write('d', [filling('d.compressed', [3], 40), filling('d.bitmask', [2, 1], 41)])
    await writer.write('b', [filling('b.compressed', [0], 20), filling('b.bitmask', [2, 1], 21)])
    await writer.write('c', [filling('c', [7], 30)])
    await writer.commit()

    const result = await openCheckpoint(out)
    const names = result.shards.map(({ tensors }) => tensors.map(({ name }) => name))
    expect(names).toEqual([
      ['a', 'b.bitmask', 'b.compressed'],
      ['c', 'd.bitmask', 'e', 'd.compressed'],
    ])
    expect(result.shards.map(({ metadata }) => metadata)).toEqual([{ format: 'pt' }, { shard: 'two' }])
    expect(await valuesOf(join(out, first))).toEqual({ a: 1, 'b.bitmask': 21, 'b.compressed': undefined })
    expect(await valuesOf(join(out, second))).toEqual({ c: 30, 'd.bitmask': 41, e: 5, 'd.compressed': 40 })
    expect(JSON.parse(await readFile(join(out, index), 'utf8'))).toEqual({
      metadata: { total_size: 5 + 2 + 7 + 2 + 9 + 3 },
      weight_map: {
        ...{ a: first, 'b.bitmask': first, 'b.compressed': first },
        ...{ c: second, 'd.bitmask': second, e: second, 'd.compressed': second },
      },
    })
  })

  test('must give what it announced, and every weight', async () => {
    const { work, out, source } = await shardedSource()
    const wrong = [
      [filling('d', [2, 4], 0)],
      [filling('d.compressed', [9], 0), filling('d.bitmask', [2, 1], 0)],
      [filling('d.compressed', [1, 1], 0), filling('d.bitmask', [2, 1], 0)],
      [filling('d.compressed', [1], 0), filling('d.bitmask', [1, 1], 0)],
      [filling('d.compressed', [1], 0), { ...filling('d.bitmask', [2, 1], 0), dtype: 'I8' as const }],
    ]
    for (const parts of wrong) {
      const writer = await CheckpointWriter.create(source, out, options)
      await expectError(writer.write('d', parts), 'INTERNAL', /"d" was encoded in another form/)
      await writer.abort()
    }
    const writer = await CheckpointWriter.create(source, out, options)
    await writer.write('b', [filling('b.compressed', [1], 0), filling('b.bitmask', [2, 1], 0)])
    await expectError(writer.commit(), 'INTERNAL', /"d" was not written/)
    expect(await readdir(work)).toEqual(['source'])
  })

  test('is asked for the most that it can take, before anything is created', async () => {
    const { work, out, source } = await shardedSource()
    const huge: Encoding = {
      ...bitmask,
      layout: ({ name, dtype }) => [{ name, dtype, shape: [2 ** 50], varies: true }],
    }
    const creating = CheckpointWriter.create(source, out, { ...options, encoding: huge })
    await expectError(creating, 'WRITE_FAILED', /2251\d+ bytes .*needed/)
    expect(await readdir(work)).toEqual(['source'])
  })

  test('may not take a name that another tensor has', async () => {
    const { out, source } = await shardedSource()
    const taken: Encoding = {
      ...bitmask,
      layout: ({ dtype }) => [{ name: 'a', dtype, shape: [1], varies: true }],
    }
    const creating = CheckpointWriter.create(source, out, { ...options, encoding: taken })
    await expectError(creating, 'INTERNAL', /two tensors of the name "a"/)
  })

  test('gets the matrix and the mask of each pruned weight', async () => {
    const work = await temporaryFolder()
    const model = await loadModel(await writeTinyModel(join(work)), { threads: 1 })
    const engine = engineOf(model)
    const { device, checkpoint } = engine
    try {
      const out = join(work, 'out')
      const name = [...checkpoint.tensors.keys()].find((key) => key.endsWith('q_proj.weight'))!
      const { shape } = checkpoint.tensors.get(name)!
      const [rows, columns] = shape as [number, number]
      const pruned = Uint8Array.from({ length: rows * columns }, (_, i) => (i % 3 === 0 ? 1 : 0))
      const values = Float32Array.from(pruned, (bit, i) => (bit ? 0 : i))
      const destination = await FolderDestination.create(engine, out, { ...options, weights: [name] })
      await destination.store(name, device.upload(values, shape), { mask: device.upload(pruned, shape) })
      await destination.commit()

      const tensors = await readTensors(join(out, 'model.safetensors'))
      expect(tensors.has(name)).toBe(false)
      expect(tensors.get(`${name}.compressed`)?.values).toEqual(values.filter((_, i) => !pruned[i]))
      const bits = tensors.get(`${name}.bitmask`)!
      const kept = Array.from(pruned, (_, i) => {
        const byte = bits.values[Math.floor(i / columns) * bits.shape[1]! + ((i % columns) >> 3)]!
        return (byte >> ((i % columns) & 7)) & 1
      })
      expect(kept).toEqual(Array.from(pruned, (bit) => 1 - bit))
      expect(tensors.size).toBe(checkpoint.tensors.size + 1)
    } finally {
      await model.dispose()
    }
  })
})

test('what a solver found reaches the encoding: the mask is that of the zeros', async () => {
  const work = await temporaryFolder()
  const model = await loadModel(await writeTinyModel(work), { threads: 1 })
  const engine = engineOf(model)
  try {
    const out = join(work, 'out')
    const job = {
      method: 'sparsegpt',
      pattern: { n: 2, m: 4 },
      sequential: 'layer',
      minBlock: 0,
      target: 'own',
      alpha: 0,
      refit: false,
    } as const
    const layers = selectLayers(engine.architecture, job)
    const weights = layers.flat().map(({ name }) => `${name}.weight`)
    const destination = await FolderDestination.create(engine, out, {
      force: false,
      encoding: bitmask,
      weights,
    })
    const windows = [0, 1].map((seed) => Int32Array.from(randomTokens(16, seed)))
    const fit = { target: 'own', alpha: 0.5, refit: false } as const
    await pruneBlocks(
      engine,
      { ...job, ...fit, blockSize: 128 },
      layers,
      windows,
      destination,
      new ProgressMeter(engine.device, 1, undefined, undefined, undefined),
    )
    await destination.commit()
    const tensors = await readTensors(join(out, 'model.safetensors'))
    for (const name of weights) {
      const { rows, columns } = layers.flat().find((layer) => `${layer.name}.weight` === name)!
      const { values } = tensors.get(`${name}.compressed`)!
      expect([name, values.length]).toEqual([name, (rows * columns) / 2])
      expect(Array.from(values)).not.toContain(0)
    }
  } finally {
    await model.dispose()
  }
})

describe('the layout of a file', () => {
  const size = fc.nat(300)
  const announced = fc.record({
    name: fc.string(),
    known: fc.boolean(),
    largest: size,
    share: fc.double({ min: 0, max: 1, noNaN: true }),
    turn: fc.nat(),
  })

  test('has room for the header, no gap and no overlap, whatever comes and in whatever order', async () => {
    const file = join(await temporaryFolder(), 'x.safetensors')
    const property = fc.asyncProperty(
      fc.uniqueArray(announced, { selector: ({ name }) => name, maxLength: 8 }),
      async (list) => {
        const parts = list
          .filter(({ name }) => name !== '__metadata__')
          .map(({ name, known, largest, ...rest }): PartLayout & { share: number; turn: number } => ({
            ...rest,
            ...{ name, dtype: 'U8', shape: [largest, 7], varies: !known },
          }))
        const layout = new ShardLayout(new Map(parts.map((part) => [part.name, [part]])), { format: 'pt' })
        const placed = new Map<string, number>()
        for (const { name, dtype, shape, varies, share } of [...parts].sort((a, b) => a.turn - b.turn)) {
          const final = varies ? shape.map((n) => Math.floor(n * share)) : shape
          placed.set(name, layout.place(name, [{ name, dtype, shape: final }])[0]!)
        }
        const { header, fileBytes } = layout.header()
        expect(fileBytes).toBeLessThanOrEqual(layout.largestBytes)
        const json = header.subarray(8)
        await writeFile(file, rawFile(json, new Uint8Array(fileBytes - header.length)))
        const { tensors } = await readSafetensorsHeader(file)
        expect(new Map(tensors.map(({ name, offset }) => [name, offset]))).toEqual(placed)
      },
    )
    await fc.assert(property, { numRuns: 200 })
  })
})
