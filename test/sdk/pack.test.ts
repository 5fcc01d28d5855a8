import { prune, type PruneOptions } from '../loose-options.js'
import { copyFile, mkdir, readFile, readdir, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { inspect, loadModel, pack, perplexity, unpack, type PackProgress } from '../../src/index.js'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { serializeHeader, type TensorLayout } from '../../src/files/safetensors.js'
import { writeSafetensors, type TestTensor } from '../files/files.js'
import { writeTorch } from '../files/torch-archive.js'
import { unlikeModels } from '../models/golden-models.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'

const file = 'packed.safetensors'

/** All files of a folder by name, but for what tells of the job that made it. */
async function filesOf(folder: string): Promise<Record<string, Buffer>> {
  const names = (await readdir(folder)).filter((name) => !/^(sparsegpt-report\.|README)/.test(name)).sort()
  return Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name))] as const)),
  )
}

async function pruned(model: string, out: string, options: Partial<PruneOptions> = {}): Promise<string> {
  const opened = await loadModel(model, { device: 'cpu', threads: 1 })
  try {
    await prune(opened, { method: 'magnitude', out, ...options })
    return out
  } finally {
    await opened.dispose()
  }
}

async function logitsOf(folder: string, dtype: 'float32' | 'bfloat16' = 'float32'): Promise<Float32Array> {
  const model = await loadModel(folder, { device: 'cpu', threads: 1, dtype })
  try {
    return (await model.logits([[1, 2, 3, 4, 5, 6]])).data
  } finally {
    await model.dispose()
  }
}

describeWithShared('models of every family', () => {
  test.each(unlikeModels)('%s: packed directly or afterwards, and unpacked, byte by byte', async (name) => {
    const work = await temporaryFolder()
    const model = sharedPath('golden', 'models', name)!
    // What is pruned by groups that share an input is stored in their order.
    const calibration = { tokens: randomTokens(100).map((id) => id % 16), samples: 2, sequenceLength: 16 }
    const options = { method: 'sparsegpt', pattern: '2:4', calibration } as const
    const dense = await pruned(model, join(work, 'dense'), options)
    const report = await pack(dense, { out: join(work, 'packed') })
    const direct = await pruned(model, join(work, 'direct'), { ...options, encoding: 'bitmask' })
    const packed = await filesOf(report.out)
    expect(Object.keys(packed).filter((name) => /safetensors/.test(name))).toEqual([file])
    expect(await filesOf(direct)).toEqual(packed)
    expect(report.packed.after).toBeGreaterThan(0)
    expect(report.bytes.after).toBe(packed[file]!.length)
    expect(report.bytes.after).toBeLessThan(report.bytes.before)
    expect(await logitsOf(report.out)).toEqual(await logitsOf(dense))
    await unpack(report.out, { out: join(work, 'unpacked') })
    expect(await filesOf(join(work, 'unpacked'))).toEqual(await filesOf(dense))
  })
})

describe('a packed model', () => {
  let work: string
  let dense: string
  let packed: string
  beforeAll(async () => {
    work = await temporaryFolder()
    // What a float may be, and a zero with a sign.
    const odd = [-0, NaN, Infinity, -Infinity, 1e-45]
    const model = await writeTinyModel(join(work, 'model'), 'llama', (name, values) => {
      if (!name.endsWith('.weight') || values.length === 24) return
      for (let i = 0; i < values.length; i++) if (i % 3 > 0) values[i] = 0
      if (name.includes('layers.1.mlp.up')) values.set(odd, 40)
    })
    packed = (await pack(model, { out: join(work, 'packed') })).out
    dense = model
  })

  test('keeps every bit', async () => {
    await unpack(packed, { out: join(work, 'unpacked') })
    expect(await filesOf(join(work, 'unpacked'))).toEqual(await filesOf(dense))
  })

  test('is inspected as it was, and its tensors have their names, dtypes and shapes', async () => {
    expect(await inspect(packed)).toEqual(await inspect(dense))
  })

  test('is measured, and pruned, to the files that the dense one gives', async () => {
    const [a, b] = [join(work, 'a'), join(work, 'b')]
    const source = await writeTinyModel(join(work, 'finite'), 'llama', (_, values) => {
      if (values.length > 24) for (let i = 0; i < values.length; i += 2) values[i] = 0
    })
    const finite = (await pack(source, { out: join(work, 'finite-packed') })).out
    const text = join(work, 'text.txt')
    await writeFile(text, asText(randomTokens(100)))
    const results = []
    for (const [folder, out] of [
      [source, a],
      [finite, b],
    ] as const) {
      const model = await loadModel(folder, { device: 'cpu', threads: 1 })
      try {
        const { perplexity: measured } = await perplexity(model, { file: text, sequenceLength: 16 })
        const calibration = { tokens: randomTokens(300), samples: 4, sequenceLength: 32 }
        const include = 'up_proj|q_proj'
        const { layers } = await prune(model, { sparsity: 0.7, calibration, include, out })
        results.push({ measured, layers: layers.map(({ name, loss }) => [name, loss]) })
      } finally {
        await model.dispose()
      }
    }
    expect(results[1]).toEqual(results[0])
    expect(await filesOf(b)).toEqual(await filesOf(a))
  })

  test('is written by prune as by pack, whichever layers are pruned', async () => {
    const options = { method: 'magnitude', sparsity: 0.8, include: 'v_proj|down_proj' } as const
    const after = await pruned(dense, join(work, 'some'), options)
    const expected = await filesOf((await pack(after, { out: join(work, 'some-packed') })).out)
    for (const [i, source] of [dense, packed].entries()) {
      const out = join(work, `some-${i}`)
      expect(await filesOf(await pruned(source, out, { ...options, encoding: 'bitmask' }))).toEqual(expected)
    }
  })

  test('is gone on with after an interruption', async () => {
    const source = await writeTinyModel(join(work, 'whole'))
    const calibration = { tokens: randomTokens(300), samples: 4, sequenceLength: 32 }
    const options = {
      method: 'sparsegpt',
      include: 'q_proj|up_proj|down_proj',
      encoding: 'bitmask',
      calibration,
    } as const
    const expected = await filesOf(await pruned(source, join(work, 'uninterrupted'), options))
    const out = join(work, 'interrupted')
    const controller = new AbortController()
    const onProgress: PruneOptions['onProgress'] = ({ block, layer }) => {
      if (block === 1 && layer) controller.abort()
    }
    const stopped = pruned(source, out, { ...options, onProgress, signal: controller.signal })
    await expectError(stopped, 'ABORTED', /1 block finished is kept/)
    expect(await filesOf(await pruned(source, out, { ...options, resume: true }))).toEqual(expected)
  })

  test('may have shards, whose index is the source’s again when it is unpacked', async () => {
    const source = join(work, 'sharded')
    await mkdir(source)
    const shard = (i: number) => `model-0000${i + 1}-of-00002.safetensors`
    const tensors = [...(await readTensors(join(dense, 'model.safetensors')))].map(
      ([name, { shape, values }]): TestTensor => ({
        name,
        dtype: 'F32',
        shape,
        data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
      }),
    )
    const map = Object.fromEntries(tensors.map(({ name }, i) => [name, shard(i % 2)]))
    for (const i of [0, 1]) {
      await writeSafetensors(
        join(source, shard(i)),
        tensors.filter((_, at) => at % 2 === i),
      )
    }
    const total_size = tensors.reduce((sum, { data }) => sum + data.length, 0)
    const index = {
      metadata: { total_parameters: 9, total_size },
      weight_map: Object.fromEntries(Object.entries(map).sort(([a], [b]) => (a < b ? -1 : 1))),
    }
    await writeFile(join(source, 'model.safetensors.index.json'), `${JSON.stringify(index, null, 2)}\n`)
    for (const name of ['config.json', 'tokenizer.json'])
      await copyFile(join(dense, name), join(source, name))
    const { out } = await pack(source, { out: join(work, 'sharded-packed') })
    expect((await readdir(out)).sort()).toEqual([
      'config.json',
      ...[0, 1].map((i) => shard(i).replace('model', 'packed')),
      'packed.safetensors.index.json',
      'tokenizer.json',
    ])
    expect(await inspect(out)).toEqual(await inspect(source))
    await unpack(out, { out: join(work, 'sharded-unpacked') })
    expect(await filesOf(join(work, 'sharded-unpacked'))).toEqual(await filesOf(source))
  })

  test('may be made of a .bin file with a transposed matrix', async () => {
    const source = join(work, 'bin')
    await mkdir(source)
    await copyFile(join(dense, 'config.json'), join(source, 'config.json'))
    const tensors = await readTensors(join(dense, 'model.safetensors'))
    const transposed = ['model.layers.0.mlp.up_proj.weight', 'model.embed_tokens.weight']
    await writeTorch(join(source, 'pytorch_model.bin'), Object.fromEntries(tensors), { transposed })
    const { out } = await pack(source, { out: join(work, 'bin-packed') })
    expect(await readdir(out)).toEqual(['config.json', file])
    await unpack(out, { out: join(work, 'bin-unpacked') })
    expect(await readTensors(join(work, 'bin-unpacked', 'model.safetensors'))).toEqual(tensors)
  })

  test('of bfloat16 computes what the dense one does, in either type', async () => {
    const source = join(work, 'bfloat16')
    await mkdir(source)
    await copyFile(join(dense, 'config.json'), join(source, 'config.json'))
    const tensors = [...(await readTensors(join(work, 'finite', 'model.safetensors')))].map(
      ([name, { shape, values }]): TestTensor => {
        const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
        return { name, dtype: 'BF16', shape, data: bytes.filter((_, i) => i % 4 >= 2) }
      },
    )
    await writeSafetensors(join(source, 'model.safetensors'), tensors)
    const { out } = await pack(source, { out: join(work, 'bfloat16-packed') })
    for (const dtype of ['float32', 'bfloat16'] as const)
      expect(await logitsOf(out, dtype)).toEqual(await logitsOf(source, dtype))
  })

  test('takes the place of a loaded model', async () => {
    const model = await loadModel(join(work, 'finite'), { device: 'cpu', threads: 1 })
    try {
      const before = await model.logits([[1, 2, 3]])
      // What is in the memory only is packed as well.
      await prune(model, { method: 'magnitude', sparsity: 0.9 })
      const after = await model.logits([[1, 2, 3]])
      expect(after.data).not.toEqual(before.data)
      const progress: PackProgress[] = []
      const { out } = await pack(model, { out: join(work, 'memory'), onProgress: (at) => progress.push(at) })
      expect(model.folder).toBe(out)
      expect((await model.logits([[1, 2, 3]])).data).toEqual(after.data)
      expect(progress).toHaveLength(14)
      expect(progress.at(-1)).toEqual({ fraction: 1, weight: 'model.layers.1.mlp.down_proj.weight' })
    } finally {
      await model.dispose()
    }
  })

  test('is made of a pruned model only, once, and elsewhere', async () => {
    const plain = await writeTinyModel(join(work, 'plain'))
    const out = join(work, 'none')
    await expectError(pack(plain, { out }), 'INVALID_OPTION', /no linear layer that would become smaller/)
    await expectError(pack(packed, { out }), 'INVALID_OPTION', /packed already \(packed\.safetensors\)/)
    await expectError(unpack(dense, { out }), 'INVALID_OPTION', /not packed: it has no packed\.safetensors/)
    await expectError(pack(dense, { out: packed }), 'OUTPUT_EXISTS', /force/)
    await expectError(pack(dense, { out: dense, force: true }), 'INVALID_OPTION', /folder of the source/)
    await expectError(unpack(packed, { out: '' }), 'INVALID_OPTION', /unpack: option out/)
    const controller = new AbortController()
    const onProgress = () => controller.abort()
    await expectError(pack(dense, { out, onProgress, signal: controller.signal }), 'ABORTED', /./)
    expect((await readdir(work)).filter((name) => name.startsWith('none'))).toEqual([])
    await pack(dense, { out: packed, force: true })
  })

  describe('that is damaged', () => {
    const name = 'model.layers.1.self_attn.v_proj'
    type Parts = Map<string, TensorLayout & { data: Buffer }>

    /** The packed folder with its tensors changed; its bytes are in the order of the header. */
    async function damaged(change: (parts: Parts) => void): Promise<string> {
      const folder = await temporaryFolder()
      await copyFile(join(dense, 'config.json'), join(folder, 'config.json'))
      const bytes = await readFile(join(packed, file))
      const header = JSON.parse(bytes.toString('utf8', 8, 8 + Number(bytes.readBigUInt64LE()))) as object
      const start = 8 + Number(bytes.readBigUInt64LE())
      const parts: Parts = new Map()
      for (const [part, entry] of Object.entries(header) as [string, Record<string, unknown>][]) {
        if (part === '__metadata__') continue
        const { dtype, shape, data_offsets } = entry as never as TensorLayout & { data_offsets: number[] }
        const [begin = 0, end = 0] = data_offsets
        const data = Buffer.from(bytes.subarray(start + begin, start + end))
        parts.set(part, { name: part, dtype, shape, data })
      }
      change(parts)
      const all = [...parts.values()]
      const contents = [serializeHeader(all, {}).header, ...all.map(({ data }) => data)]
      await writeFile(join(folder, file), Buffer.concat(contents))
      return folder
    }

    const refused = async (folder: string, message: RegExp) => {
      const open = async () => {
        const model = await loadModel(folder, { device: 'cpu', threads: 1 })
        try {
          await model.logits([[1, 2, 3]])
        } finally {
          await model.dispose()
        }
      }
      const work = await temporaryFolder()
      const pruneIt = async () => {
        const model = await loadModel(folder, { device: 'cpu', threads: 1 })
        const calibration = { tokens: randomTokens(100), samples: 2, sequenceLength: 16 }
        try {
          await prune(model, { calibration, out: join(work, 'pruned') })
        } finally {
          await model.dispose()
        }
      }
      for (const job of [open(), unpack(folder, { out: join(work, 'out') }), inspect(folder), pruneIt()])
        await expectError(job, 'INVALID_CHECKPOINT', message)
      expect(await readdir(work)).toEqual([])
    }

    const part = (parts: Parts, end: string) => parts.get(`${name}.${end}`)!

    test('is sound before', async () => {
      expect(await inspect(await damaged(() => undefined))).toEqual(await inspect(dense))
    })

    test.each<[string, (parts: Parts) => void, RegExp]>([
      ['without row_offsets', (parts) => parts.delete(`${name}.row_offsets`), /lacks .*v_proj\.row_offsets/],
      ['without a shape', (parts) => parts.delete(`${name}.shape`), /lacks .*v_proj\.shape/],
      [
        'with compressed only',
        (parts) => {
          for (const end of ['bitmask', 'row_offsets', 'shape']) parts.delete(`${name}.${end}`)
        },
        /lacks .*v_proj\.shape/,
      ],
      [
        'both packed and not',
        (parts) => {
          parts.set(`${name}.weight`, { ...part(parts, 'bitmask'), name: `${name}.weight` })
        },
        /v_proj\.weight" is there unpacked, too/,
      ],
      [
        'with a negative shape',
        (parts) => part(parts, 'shape').data.writeBigInt64LE(-12n, 0),
        /no shape of a matrix/,
      ],
      [
        'with a huge shape',
        (parts) => part(parts, 'shape').data.writeBigInt64LE(2n ** 62n, 8),
        /no shape of a matrix/,
      ],
      [
        'with other rows',
        (parts) => part(parts, 'shape').data.writeBigInt64LE(11n, 0),
        /v_proj\.bitmask is U8 \[12, 3\], expected U8 \[11, 3\]/,
      ],
      [
        'with another type of shape',
        (parts) => {
          part(parts, 'shape').dtype = 'U64'
        },
        /v_proj\.shape is U64 \[2\], expected I64 \[2\]/,
      ],
      [
        'with another type of offsets',
        (parts) => {
          part(parts, 'row_offsets').dtype = 'U64'
        },
        /v_proj\.row_offsets is U64 \[12\]/,
      ],
      [
        'with values in two dimensions',
        (parts) => {
          part(parts, 'compressed').shape.push(1)
        },
        /v_proj\.compressed is F32 \[96, 1\], expected F32 \[96\]/,
      ],
      [
        'with more values than elements',
        (parts) => {
          Object.assign(part(parts, 'compressed'), { shape: [300], data: Buffer.alloc(1200) })
        },
        /300 values, but the matrix 288 elements/,
      ],
    ])('%s: refused when it is opened', async (_, change, message) => {
      await refused(await damaged(change), message)
    })

    test.each<[string, (parts: Parts) => void, number]>([
      [
        'a bit too many',
        (parts) => {
          part(parts, 'bitmask').data[3 * 4]! ^= 1
        },
        4,
      ],
      [
        'offsets that run backwards',
        (parts) => part(parts, 'row_offsets').data.writeBigInt64LE(1n, 8 * 6),
        5,
      ],
      [
        'an offset behind the values',
        (parts) => part(parts, 'row_offsets').data.writeBigInt64LE(97n, 8 * 11),
        10,
      ],
      ['a negative offset', (parts) => part(parts, 'row_offsets').data.writeBigInt64LE(-1n, 8 * 3), 2],
      ['a first offset that is not 0', (parts) => part(parts, 'row_offsets').data.writeBigInt64LE(1n, 0), 0],
      [
        'a value too few',
        (parts) => {
          const { data } = part(parts, 'compressed')
          Object.assign(part(parts, 'compressed'), { shape: [95], data: data.subarray(4) })
        },
        11,
      ],
    ])('%s: refused when it is unpacked', async (_, change, row) => {
      const message = new RegExp(
        `packed\\.safetensors: the packed tensor "${name}\\.weight" is damaged in row ${row}:`,
      )
      await refused(await damaged(change), message)
    })

    test('in an index that leaves a part out', async () => {
      const folder = await damaged(() => undefined)
      const shard = 'packed-00001-of-00001.safetensors'
      await copyFile(join(folder, file), join(folder, shard))
      const names = (await openCheckpoint(folder)).shards[0]!.tensors.flatMap(({ name, packed }) =>
        packed ? [packed.shape, packed.compressed, packed.bitmask].map((each) => each.name) : [name],
      )
      await rename(join(folder, file), join(folder, 'other.safetensors'))
      const weight_map = Object.fromEntries(names.map((each) => [each, shard]))
      await writeFile(join(folder, `${file}.index.json`), JSON.stringify({ weight_map }))
      await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /lacks .*q_proj\.row_offsets/)
    })
  })
})
