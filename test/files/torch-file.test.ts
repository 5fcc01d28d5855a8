import { existsSync } from 'node:fs'
import { readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { deflateRawSync } from 'node:zlib'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import type { StoredTensor } from '../../src/files/safetensors.js'
import { gather } from '../../src/files/strided.js'
import { readTorchFile } from '../../src/files/torch-file.js'
import { SparseGptError } from '../../src/errors.js'
import { expectError, temporaryFolder } from '../temporary.js'
import {
  op,
  statePickle,
  tensorPickle,
  torchFiles,
  zip,
  type TorchView,
  type ZipFile,
} from './torch-archive.js'

let count = 0
let folder: string | undefined
async function fileOf(contents: Uint8Array): Promise<string> {
  folder ??= await temporaryFolder()
  const file = join(folder, `${count++}.bin`)
  await writeFile(file, contents)
  return file
}

const twelve = new Uint8Array(Float32Array.from({ length: 12 }, (_, i) => i).buffer)

const view = (change: Partial<TorchView> = {}): TorchView => ({
  storage: '0',
  type: 'FloatStorage',
  storageSize: 12,
  offset: 0,
  shape: [3, 4],
  strides: [4, 1],
  ...change,
})

const archive = (tensors: Record<string, Buffer>, change?: (files: ZipFile[]) => ZipFile[]) => {
  const files = torchFiles(statePickle(tensors), { '0': twelve })
  return zip(change ? change(files) : files)
}

const withPickle = (...pickle: Buffer[]) => zip(torchFiles(Buffer.concat(pickle), { '0': twelve }))

async function valuesOf(tensor: StoredTensor): Promise<number[]> {
  return [...new Float32Array(gather(tensor).buffer as ArrayBuffer)]
}

const counting = (length: number) => Array.from({ length }, (_, i) => i)

describe('readTorchFile reads', () => {
  test.each([[false], [true]])('tensors at their places in the file (zip64: %s)', async (zip64) => {
    const files = torchFiles(
      statePickle({
        a: tensorPickle(view()),
        b: tensorPickle(view({ offset: 4, shape: [2], strides: [1] })),
      }),
      {
        '0': twelve,
      },
    )
    const file = await fileOf(zip(files, { zip64 }))
    const { tensors, metadata } = await readTorchFile(file)
    expect(metadata).toEqual({ format: 'pt' })
    const [a, b] = tensors as [StoredTensor, StoredTensor]
    expect(a).toEqual({ name: 'a', dtype: 'F32', shape: [3, 4], file, offset: a.offset, bytes: 48 })
    expect((await readFile(file)).subarray(a.offset, a.offset + 48).equals(twelve)).toBe(true)
    expect(b).toMatchObject({ offset: a.offset + 16, bytes: 8 })
    expect(await valuesOf(b)).toEqual([4, 5])
  })

  test('strided tensors, as transposing and slicing make them', async () => {
    const file = await fileOf(
      archive({
        transposed: tensorPickle(view({ shape: [4, 3], strides: [1, 4] })),
        column: tensorPickle(view({ offset: 1, shape: [3], strides: [4] })),
        permuted: tensorPickle(view({ shape: [2, 2, 3], strides: [1, 6, 2] })),
        ones: tensorPickle(view({ shape: [1, 12, 1], strides: [7, 1, 99] })),
        scalar: tensorPickle(view({ offset: 11, shape: [], strides: [] })),
        empty: tensorPickle(view({ shape: [0, 5], strides: [1, 1] })),
      }),
    )
    const tensors = new Map((await readTorchFile(file)).tensors.map((tensor) => [tensor.name, tensor]))
    expect(await valuesOf(tensors.get('transposed')!)).toEqual([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
    expect(await valuesOf(tensors.get('column')!)).toEqual([1, 5, 9])
    expect(await valuesOf(tensors.get('permuted')!)).toEqual([0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11])
    expect(tensors.get('ones')).not.toHaveProperty('strides')
    expect(await valuesOf(tensors.get('ones')!)).toEqual(counting(12))
    expect(await valuesOf(tensors.get('scalar')!)).toEqual([11])
    expect(await valuesOf(tensors.get('empty')!)).toEqual([])
  })

  test('every type of storage, with its width', async () => {
    for (const [type, dtype, width] of [
      ['DoubleStorage', 'F64', 8],
      ['FloatStorage', 'F32', 4],
      ['HalfStorage', 'F16', 2],
      ['BFloat16Storage', 'BF16', 2],
      ['LongStorage', 'I64', 8],
      ['IntStorage', 'I32', 4],
      ['ShortStorage', 'I16', 2],
      ['CharStorage', 'I8', 1],
      ['ByteStorage', 'U8', 1],
      ['BoolStorage', 'BOOL', 1],
    ] as const) {
      const storageSize = 48 / width
      const tensor = tensorPickle(view({ type, storageSize, shape: [storageSize], strides: [1] }))
      const { tensors } = await readTorchFile(await fileOf(archive({ x: tensor })))
      expect(tensors[0]).toMatchObject({ dtype, bytes: 48 })
    }
  })

  test('parameters, and globals named the way of protocol 4', async () => {
    const parameter = Buffer.concat([
      ...[op.text('torch._utils'), op.text('_rebuild_parameter'), op.stackGlobal, op.mark],
      ...[tensorPickle(view()), op.flag(true), op.none, op.tuple, op.reduce],
    ])
    const { tensors } = await readTorchFile(await fileOf(archive({ x: parameter })))
    expect(tensors[0]).toMatchObject({ name: 'x', shape: [3, 4] })
  })
})

describe('readTorchFile refuses a pickle that', () => {
  const marker = join(import.meta.dirname, 'executed')
  const command = op.text(`touch ${marker}`)
  const tensor = tensorPickle(view())

  test.each<[string, Buffer[], RegExp]>([
    [
      'calls os.system by GLOBAL and REDUCE',
      [op.proto(), op.global('os', 'system'), command, op.tuple1, op.reduce, op.stop],
      /"os\.system".*not run/,
    ],
    [
      'calls posix.system by STACK_GLOBAL',
      [
        op.proto(4),
        op.text('posix'),
        op.text('system'),
        op.stackGlobal,
        command,
        op.tuple1,
        op.reduce,
        op.stop,
      ],
      /"posix\.system".*not run/,
    ],
    [
      'hides the call among tensors',
      [statePickle({ x: Buffer.concat([op.global('builtins', 'eval'), command, op.tuple1, op.reduce]) })],
      /"builtins\.eval"/,
    ],
    [
      'only mentions a foreign global',
      [op.proto(), op.global('subprocess', 'Popen'), op.stop],
      /"subprocess\.Popen"/,
    ],
    [
      'spells an allowed name apart',
      [op.proto(), op.global('torch._utils _rebuild_tensor_v2', ''), op.stop],
      /not run/,
    ],
    [
      'calls a storage type',
      [statePickle({ x: Buffer.concat([op.global('torch', 'FloatStorage'), op.emptyTuple, op.reduce]) })],
      /calls something/,
    ],
    [
      'calls a tensor',
      [statePickle({ x: Buffer.concat([tensor, op.emptyTuple, op.reduce]) })],
      /calls something/,
    ],
    [
      'calls with what is no tuple',
      [op.proto(), op.global('collections', 'OrderedDict'), op.none, op.reduce, op.stop],
      /calls something/,
    ],
    ['uses INST', [op.proto(), op.mark, command, Buffer.from('ios\nsystem\n'), op.stop], /opcode 0x69/],
    ['uses OBJ', [op.proto(), op.mark, op.none, Buffer.from('o'), op.stop], /opcode 0x6f/],
    ['uses NEWOBJ', [op.proto(), op.none, op.emptyTuple, Buffer.from([0x81]), op.stop], /opcode 0x81/],
    ['uses an extension code', [op.proto(), Buffer.from([0x82, 1]), op.stop], /opcode 0x82/],
    [
      'builds attributes on a tensor',
      [statePickle({ x: Buffer.concat([tensor, op.emptyDict, op.build]) })],
      /attributes of something/,
    ],
    ['holds no dictionary', [op.proto(), op.none, op.stop], /not hold a dictionary/],
    ['holds a value that is no tensor', [statePickle({ x: op.int(1) })], /"x" is not a tensor/],
    [
      'has a name twice',
      [op.proto(), op.emptyDict, op.mark, op.text('x'), tensor, op.text('x'), tensor, op.setitems, op.stop],
      /"x" twice/,
    ],
    [
      'has a key that is a tuple',
      [op.proto(), op.emptyDict, op.emptyTuple, tensor, op.setitem, op.stop],
      /not text/,
    ],
    [
      'has a tensor without a name',
      [op.proto(), op.emptyDict, op.int(1), tensor, op.setitem, op.stop],
      /under the name 1/,
    ],
    ['takes from an empty stack', [op.proto(), op.reduce, op.stop], /not there/],
    ['takes past a mark', [op.proto(), op.none, op.mark, op.reduce, op.stop], /not there/],
    ['closes a tuple it never opened', [op.proto(), op.none, op.tuple, op.stop], /not there/],
    ['recalls what it never stored', [op.proto(), Buffer.from('h\x07'), op.stop], /has not made/],
    ['ends early', [op.proto(), Buffer.from('X\xff\xff\xff\x7fab', 'latin1')], /middle/],
    ['has no STOP', [op.proto(), op.none], /middle/],
    ['leaves values over', [op.proto(), op.none, op.none, op.stop], /more than one value/],
    ['is of protocol 0', [Buffer.from('(dp0\n.')], /opcode/],
    ['makes a stack without end', [op.proto(), Buffer.alloc(2 ** 21, '('), op.stop], /more than 1048576/],
    ['makes objects without end', [op.proto(), Buffer.alloc(2 ** 21, '}'), op.stop], /more than 1048576/],
    [
      'fills the memo without end',
      [op.proto(), op.none, Buffer.alloc(2 ** 21, 0x94), op.stop],
      /more than 1048576/,
    ],
  ])('%s', async (_title, pickle, message) => {
    const file = await fileOf(withPickle(...pickle))
    const error = await expectError(readTorchFile(file), 'INVALID_CHECKPOINT', message)
    expect(error.message).toContain(file)
    expect(existsSync(marker)).toBe(false)
  })

  const far = 2 ** 53
  test.each<[string, Partial<TorchView>, RegExp]>([
    ['begins beyond its storage', { offset: 12, shape: [1], strides: [1] }, /beyond its storage/],
    ['ends beyond its storage', { offset: 1 }, /beyond its storage/],
    ['has a row too many', { shape: [4, 4] }, /beyond its storage/],
    ['strides beyond its storage', { shape: [2, 4], strides: [9, 1] }, /beyond its storage/],
    ['repeats its elements', { shape: [1e9, 12], strides: [0, 1] }, /more elements/],
    ['overlaps itself', { shape: [9, 4], strides: [1, 1] }, /more elements/],
    ['has a product that overflows', { shape: [2 ** 32, 2 ** 32], strides: [0, 0] }, /more elements/],
    ['has a negative size', { shape: [-3, 4] }, /non-negative/],
    ['has a negative stride', { strides: [-4, 1] }, /non-negative/],
    ['has a negative offset', { offset: -1 }, /not made from/],
    ['has an offset beyond 2^53', { offset: far }, /not made from/],
    ['has a size beyond 2^53', { shape: [far, 1] }, /non-negative/],
    ['has strides for other dimensions', { strides: [1] }, /non-negative/],
    [
      'has 65 dimensions',
      { shape: Array<number>(65).fill(1), strides: Array<number>(65).fill(1) },
      /65 dimensions/,
    ],
    ['has a storage said to be larger', { storageSize: 13 }, /13 elements of F32, but has 48 bytes/],
    ['has a storage said to be smaller', { storageSize: 11 }, /but has 48 bytes/],
    ['has a storage size that overflows', { storageSize: far - 1 }, /but has 48 bytes/],
    ['has a storage that is missing', { storage: '1' }, /no data for the storage "1"/],
    ['has a storage outside the archive', { storage: '../data.pkl' }, /no data for the storage/],
    ['has a storage of an unknown type', { type: 'ComplexFloatStorage' }, /"torch\.ComplexFloatStorage"/],
  ])('has a tensor that %s', async (_title, change, message) => {
    const file = await fileOf(archive({ x: tensorPickle(view(change)) }))
    await expectError(readTorchFile(file), 'INVALID_CHECKPOINT', message)
  })

  test('has a storage in a form of its own', async () => {
    for (const id of [op.none, op.text('0'), Buffer.concat([op.text('storage'), op.tuple1])]) {
      const args = [op.mark, id, op.persistent, op.int(0), op.emptyTuple, op.emptyTuple, op.tuple]
      const x = Buffer.concat([op.global('torch._utils', '_rebuild_tensor_v2'), ...args, op.reduce])
      await expectError(readTorchFile(await fileOf(archive({ x }))), 'INVALID_CHECKPOINT', /unknown way/)
    }
  })
})

describe('readTorchFile refuses an archive that', () => {
  const good = () => torchFiles(statePickle({ x: tensorPickle(view()) }), { '0': twelve })
  const changed = (name: string, change: Partial<ZipFile>) =>
    zip(good().map((file) => (file.name === name ? { ...file, ...change } : file)))

  test.each<[string, () => Uint8Array, RegExp]>([
    ['is empty', () => new Uint8Array(), /end-of-directory/],
    ['is something else', () => Buffer.alloc(1000, 7), /end-of-directory/],
    [
      'is TorchScript',
      () => zip([...good(), { name: 'archive/constants.pkl', data: new Uint8Array() }]),
      /TorchScript/,
    ],
    ['has no pickle', () => zip(good().slice(1)), /one data\.pkl, but has 0/],
    [
      'has two pickles',
      () => zip([...good(), { name: 'other/data.pkl', data: new Uint8Array() }]),
      /but has 2/,
    ],
    [
      'has an entry twice',
      () => zip([...good(), { name: 'archive/data/0', data: twelve }]),
      /"archive\/data\/0" twice/,
    ],
    ['is big-endian', () => changed('archive/byteorder', { data: Buffer.from('big') }), /"big"/],
    [
      'is a zip bomb',
      () =>
        changed('archive/data.pkl', {
          method: 8,
          data: deflateRawSync(Buffer.alloc(2 ** 24)),
          directoryBytes: 2 ** 32 - 2,
        }),
      /"archive\/data\.pkl" is compressed/,
    ],
    [
      'has a compressed storage',
      () => changed('archive/data/0', { method: 8, data: deflateRawSync(twelve), directoryBytes: 48 }),
      /"archive\/data\/0" is compressed/,
    ],
    [
      'has a pickle without measure',
      () => changed('archive/data.pkl', { data: Buffer.alloc(2 ** 26 + 1) }),
      /allowed are 67108864/,
    ],
    [
      'has an entry that reaches outside',
      () => changed('archive/data/0', { directoryBytes: 1e6 }),
      /reaches outside/,
    ],
    [
      'has an entry at a place outside',
      () => changed('archive/data/0', { directoryOffset: 1e9 }),
      /lies outside/,
    ],
    [
      'has an entry at the place of another',
      () => changed('archive/data/0', { directoryOffset: 0 }),
      /described differently/,
    ],
    [
      'has an entry of another name at its place',
      () => changed('archive/data/0', { directoryName: 'archive/data/1' }),
      /described differently/,
    ],
    [
      'has entries that overlap',
      () => {
        // The whole header of one lies in the data of another.
        const inner = zip([{ name: 'archive/data/0', data: twelve }])
        const outer = { name: 'archive/cover', data: inner }
        const place = 30 + outer.name.length
        const files = good().map((file) =>
          file.name === 'archive/data/0' ? { ...file, directoryOffset: place } : file,
        )
        return zip([outer, ...files])
      },
      /overlap/,
    ],
  ])('%s', async (_title, make, message) => {
    await expectError(readTorchFile(await fileOf(make())), 'INVALID_CHECKPOINT', message)
  })

  test('has zip64 numbers beyond 2^53, or a directory elsewhere', async () => {
    const bytes = zip(good(), { zip64: true })
    const record = bytes.length - 22 - 20 - 56
    for (const at of [record + 32, record + 40, record + 48, bytes.length - 22 - 20 + 8]) {
      for (const value of [2n ** 64n - 1n, 2n ** 40n, 1n]) {
        const damaged = Buffer.from(bytes)
        damaged.writeBigUInt64LE(value, at)
        await expectError(
          readTorchFile(await fileOf(damaged)),
          'INVALID_CHECKPOINT',
          /not a valid torch checkpoint/,
        )
      }
    }
  })

  test('is in the format of torch 1.5, and says how to convert it', async () => {
    const file = await fileOf(Buffer.from('80028a0a6cfc9c46f9206aa850192e80024de903', 'hex'))
    await expectError(readTorchFile(file), 'INVALID_CHECKPOINT', /torch 1\.5.*torch\.save\(torch\.load/)
  })

  test('is truncated, wherever', async () => {
    const bytes = zip(good())
    for (let length = 0; length < bytes.length; length += 7) {
      await expectError(
        readTorchFile(await fileOf(bytes.subarray(0, length))),
        'INVALID_CHECKPOINT',
        /not a valid torch checkpoint/,
      )
    }
  })

  test('is missing', async () => {
    await expectError(readTorchFile('/nowhere/x.bin'), 'FILE_NOT_FOUND', /\/nowhere\/x\.bin does not exist/)
  })
})

test('a file that is cut after it was opened is noticed when a tensor is read', async () => {
  const file = await fileOf(archive({ x: tensorPickle(view({ shape: [4, 3], strides: [1, 4] })) }))
  const { tensors } = await readTorchFile(file)
  await truncate(file, 10)
  expect(() => gather(tensors[0]!)).toThrow(expect.objectContaining({ code: 'INVALID_CHECKPOINT' }))
})

test('a damaged file gives a typed error, or tensors that lie inside it', async () => {
  const pickle = statePickle({
    a: tensorPickle(view()),
    b: tensorPickle(view({ shape: [4, 3], strides: [1, 4] })),
  })
  const bytes = zip(torchFiles(pickle, { '0': twelve }))
  const byte = fc.record({ at: fc.nat(bytes.length - 1), value: fc.nat(255) })
  await fc.assert(
    fc.asyncProperty(fc.array(byte, { minLength: 1, maxLength: 4 }), async (changes) => {
      const damaged = Buffer.from(bytes)
      for (const { at, value } of changes) damaged[at] = value
      const file = await fileOf(damaged)
      try {
        for (const tensor of (await readTorchFile(file)).tensors) {
          expect(tensor.offset + tensor.bytes).toBeLessThanOrEqual(bytes.length)
          expect(gather(tensor)).toHaveLength(tensor.bytes)
        }
      } catch (error) {
        expect(error).toBeInstanceOf(SparseGptError)
        expect((error as SparseGptError).code).toBe('INVALID_CHECKPOINT')
      }
    }),
    { numRuns: 1500 },
  )
})
