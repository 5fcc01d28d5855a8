import { truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { SparseGptError } from '../../src/errors.js'
import {
  readSafetensorsHeader,
  serializeHeader,
  storedBytes,
  tensorBytes,
  type StoredDType,
} from '../../src/files/safetensors.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { rawFile } from './files.js'
import { expectError, temporaryFolder } from '../temporary.js'

let count = 0
async function fileOf(contents: Uint8Array): Promise<string> {
  folder ??= await temporaryFolder()
  const file = join(folder, `${count++}.safetensors`)
  await writeFile(file, contents)
  return file
}
let folder: string | undefined

const entry = (range: [number, number], shape = [range[1] - range[0]], dtype = 'U8') =>
  JSON.stringify({ dtype, shape, data_offsets: range })

describe('readSafetensorsHeader reads', () => {
  test('tensors ordered by offset, with absolute offsets, and the metadata', async () => {
    const json = `{"__metadata__":{"format":"pt"},"b":${entry([6, 8])},"a":${entry([0, 6], [3], 'BF16')}}`
    const file = await fileOf(rawFile(json, new Uint8Array(8)))
    const start = 8 + json.length
    expect(await readSafetensorsHeader(file)).toEqual({
      metadata: { format: 'pt' },
      tensors: [
        { name: 'a', dtype: 'BF16', shape: [3], file, offset: start, bytes: 6 },
        { name: 'b', dtype: 'U8', shape: [2], file, offset: start + 6, bytes: 2 },
      ],
    })
  })

  test('padding after the header, scalars, empty tensors and no tensors at all', async () => {
    expect((await readSafetensorsHeader(await fileOf(rawFile('{}  ')))).tensors).toEqual([])
    const json = `{"full":${entry([0, 4], [], 'F32')},"empty":${entry([0, 0], [0, 7])},"end":${entry([4, 4])}}`
    const { tensors } = await readSafetensorsHeader(await fileOf(rawFile(json, new Uint8Array(4))))
    expect(tensors.map(({ name, bytes }) => [name, bytes])).toEqual([
      ['empty', 0],
      ['full', 4],
      ['end', 0],
    ])
  })

  test('names that mean something to JavaScript', async () => {
    const json = `{"__proto__":${entry([0, 1])},"constructor":${entry([1, 2])},"0":${entry([2, 3])}}`
    const { tensors } = await readSafetensorsHeader(await fileOf(rawFile(json, new Uint8Array(3))))
    expect(tensors.map(({ name }) => name)).toEqual(['__proto__', 'constructor', '0'])
  })

  test('the same key in different objects', async () => {
    const json = `{"__metadata__":{"dtype":"dtype","a":"a"},"a":${entry([0, 1])},"shape":${entry([1, 2])}}`
    const { tensors } = await readSafetensorsHeader(await fileOf(rawFile(json, new Uint8Array(2))))
    expect(tensors).toHaveLength(2)
  })
})

describe('readSafetensorsHeader reads what other writers write', () => {
  test('null as metadata, and fields of an entry that are not known', async () => {
    const tensor = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":{"y":1}}'
    const file = await fileOf(rawFile(`{"__metadata__":null,${tensor}}`, new Uint8Array(4)))
    const { tensors, metadata } = await readSafetensorsHeader(file)
    expect(metadata).toEqual({})
    expect(tensors).toMatchObject([{ name: 'a', dtype: 'U8', shape: [4], bytes: 4 }])
  })

  test.each([
    ['F8_E8M0', 4],
    ['F8_E4M3FNUZ', 4],
    ['F4', 8],
    ['F6_E2M3', 16],
    ['C64', 8],
  ])('the dtype %s', async (dtype, elements) => {
    const bytes = dtype === 'C64' ? 64 : dtype === 'F6_E2M3' ? 12 : 4
    const json = `{"a":{"dtype":"${dtype}","shape":[${elements}],"data_offsets":[0,${bytes}]}}`
    const { tensors } = await readSafetensorsHeader(await fileOf(rawFile(json, new Uint8Array(bytes))))
    expect(tensors).toMatchObject([{ dtype, bytes }])
  })
})

describe('readSafetensorsHeader refuses', () => {
  test('a missing file', async () => {
    await expectError(
      readSafetensorsHeader('/nowhere/x.safetensors'),
      'FILE_NOT_FOUND',
      /\/nowhere\/x.safetensors/,
    )
  })

  const length = (value: bigint) => {
    const bytes = Buffer.alloc(10)
    bytes.writeBigUInt64LE(value)
    return bytes
  }
  const one = (fields: string) => rawFile(`{"a":{${fields}}}`, new Uint8Array(4))

  const faults: [string, Uint8Array, RegExp][] = [
    ['a file below 8 bytes', new Uint8Array(7), /7 bytes/],
    ['a header longer than the file', length(3n), /truncated/],
    ['a header over 100 MB', length(100_000_001n), /at most 100000000/],
    ['a header length beyond 2^53', length(2n ** 64n - 1n), /18446744073709551615/],
    ['an empty header', length(0n), /begin with '\{'/],
    ['invalid UTF-8', rawFile(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d])), /UTF-8/],
    ['a header that begins with a space', rawFile(' {}'), /begin with '\{'/],
    ['a header that is a list', rawFile('[]'), /begin with '\{'/],
    ['invalid JSON', rawFile('{"a":}'), /not valid JSON/],
    ['JSON with something after it', rawFile('{}{}'), /not valid JSON/],
    ['JSON nested beyond measure', rawFile(`{"a":${'['.repeat(200_000)}`), /nested more than 32 levels/],
    [
      'a tensor twice, differently',
      rawFile(`{"a":${entry([0, 1])},"a":${entry([1, 2])}}`, new Uint8Array(2)),
      /"a"|'a'/,
    ],
    [
      'a tensor twice, the same',
      rawFile(`{"a":${entry([0, 1])},"a":${entry([0, 1])}}`, new Uint8Array(1)),
      /"a" twice/,
    ],
    [
      'a tensor twice, spelt differently',
      rawFile(`{"a":${entry([0, 1])},"\\u0061":${entry([0, 1])}}`, new Uint8Array(1)),
      /"a" twice/,
    ],
    ['a dtype twice', one('"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]'), /"dtype" twice/],
    ['a shape twice', one('"dtype":"F32","shape":[],"data_offsets":[0,4],"shape":[]'), /"shape" twice/],
    ['a metadata key twice', rawFile('{"__metadata__":{"k":"v","k":"v"}}'), /"k" twice/],
    ['the metadata twice', rawFile('{"__metadata__":{},"__metadata__":{}}'), /"__metadata__" twice/],
    ['metadata that is no map', rawFile('{"__metadata__":["x"]}'), /__metadata__/],
    ['metadata that is a number', rawFile('{"__metadata__":{"n":1}}'), /"n" must be a string/],
    ['an entry that is no object', rawFile('{"a":1}'), /tensor "a" must have the fields/],
    ['an entry without dtype', one('"shape":[4],"data_offsets":[0,4]'), /lacks the field dtype/],
    ['an entry without shape', one('"dtype":"U8","data_offsets":[0,4]'), /lacks the field shape/],
    ['an entry without data_offsets', one('"dtype":"U8","shape":[4]'), /lacks the field data_offsets/],
    ['parts of bytes', one('"dtype":"F4","shape":[7],"data_offsets":[0,4]'), /do not fill whole bytes/],
    ['an unknown dtype', one('"dtype":"F33","shape":[4],"data_offsets":[0,4]'), /"F33"; known are C64, F64/],
    ['a dtype from the prototype', one('"dtype":"toString","shape":[4],"data_offsets":[0,4]'), /"toString"/],
    ['a dtype that is a number', one('"dtype":8,"shape":[4],"data_offsets":[0,4]'), /dtype 8/],
    ['a shape that is no list', one('"dtype":"U8","shape":4,"data_offsets":[0,4]'), /shape/],
    ['a negative size', one('"dtype":"U8","shape":[-4],"data_offsets":[0,4]'), /shape/],
    ['two negative sizes', one('"dtype":"U8","shape":[-2,-2],"data_offsets":[0,4]'), /shape/],
    ['a size with a fraction', one('"dtype":"U8","shape":[4.0],"data_offsets":[0,4]'), /shape/],
    ['a size that is text', one('"dtype":"U8","shape":["4"],"data_offsets":[0,4]'), /shape/],
    ['a size beyond 2^53', one('"dtype":"U8","shape":[9007199254740993,0],"data_offsets":[0,0]'), /shape/],
    [
      'a product beyond 2^53',
      one('"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,4]'),
      /2\^53/,
    ],
    [
      'a product that wraps to the right size',
      one('"dtype":"U8","shape":[4294967297,4294967297,4],"data_offsets":[0,4]'),
      /2\^53/,
    ],
    ['data_offsets that are one', one('"dtype":"U8","shape":[4],"data_offsets":[4]'), /data_offsets/],
    ['data_offsets that are three', one('"dtype":"U8","shape":[4],"data_offsets":[0,4,4]'), /data_offsets/],
    ['negative data_offsets', one('"dtype":"U8","shape":[4],"data_offsets":[-4,0]'), /data_offsets/],
    ['data_offsets beyond 2^53', one('"dtype":"U8","shape":[4],"data_offsets":[0,1e300]'), /data_offsets/],
    ['data_offsets backwards', one('"dtype":"U8","shape":[4],"data_offsets":[4,0]'), /before they begin/],
    ['too few bytes for the shape', one('"dtype":"F32","shape":[2],"data_offsets":[0,4]'), /need 8/],
    ['too many bytes for the shape', one('"dtype":"F16","shape":[1],"data_offsets":[0,4]'), /need 2/],
    [
      'an end beyond 2^53 in the file',
      one('"dtype":"U8","shape":[4],"data_offsets":[9007199254740987,9007199254740991]'),
      /beyond 2\^53/,
    ],
    [
      'overlapping tensors',
      rawFile(`{"a":${entry([0, 4])},"b":${entry([3, 5])}}`, new Uint8Array(5)),
      /"b" overlaps/,
    ],
    [
      'the same bytes for two tensors',
      rawFile(`{"a":${entry([0, 4])},"b":${entry([0, 4])}}`, new Uint8Array(4)),
      /overlaps/,
    ],
    ['a gap', rawFile(`{"a":${entry([0, 1])},"b":${entry([2, 3])}}`, new Uint8Array(3)), /"b" leaves a gap/],
    ['a gap at the start', rawFile(`{"a":${entry([1, 2])}}`, new Uint8Array(2)), /"a" leaves a gap/],
    ['an empty tensor in a gap', rawFile(`{"a":${entry([2, 2])}}`, new Uint8Array(2)), /"a" leaves a gap/],
    ['truncated data', rawFile(`{"a":${entry([0, 4])}}`, new Uint8Array(3)), /truncated/],
    ['trailing bytes', rawFile(`{"a":${entry([0, 4])}}`, new Uint8Array(5)), /after the last tensor/],
    ['data that no tensor describes', rawFile('{}', new Uint8Array(1)), /after the last tensor/],
  ]
  test.each(faults)('%s', async (_title, contents, message) => {
    const file = await fileOf(contents)
    const error = await expectError(readSafetensorsHeader(file), 'INVALID_CHECKPOINT', message)
    expect(error.message).toContain(file)
  })

  test('a folder', async () => {
    await expectError(
      readSafetensorsHeader(await temporaryFolder()),
      'FILE_NOT_FOUND',
      /is a folder, not a file/,
    )
  })
})

describe('serializeHeader', () => {
  test('pads to a multiple of 8 and lays tensors out in the given order', () => {
    const tensors = [
      { name: 'b', dtype: 'F32' as const, shape: [2, 3] },
      { name: 'a', dtype: 'U8' as const, shape: [] },
    ]
    const { header, offsets, fileBytes } = serializeHeader(tensors, { format: 'pt' })
    expect(header.length % 8).toBe(0)
    expect(offsets.get('b')).toBe(header.length)
    expect(offsets.get('a')).toBe(header.length + 24)
    expect(fileBytes).toBe(header.length + 25)
    expect(JSON.parse(Buffer.from(header.subarray(8)).toString())).toMatchObject({
      __metadata__: { format: 'pt' },
      b: { dtype: 'F32', shape: [2, 3], data_offsets: [0, 24] },
    })
  })

  test('refuses a name that occurs twice', () => {
    const tensor = { name: 'a', dtype: 'U8' as const, shape: [1] }
    expect(() => serializeHeader([tensor, tensor], {})).toThrow(SparseGptError)
  })
})

const dtypes = Object.keys(storedBytes) as StoredDType[]
const header = fc.record({
  tensors: fc
    .uniqueArray(
      fc.record({
        name: fc.oneof(
          fc.string({ unit: 'grapheme' }),
          fc.constantFrom('__proto__', '7', 'a"b\\', 'constructor'),
        ),
        dtype: fc.constantFrom(...dtypes),
        shape: fc.array(fc.nat(4), { maxLength: 3 }),
      }),
      { selector: ({ name }) => name, maxLength: 6 },
    )
    .map((tensors) => tensors.filter((tensor) => Number.isInteger(tensorBytes(tensor)))),
  metadata: fc.dictionary(fc.string(), fc.string(), { maxKeys: 3 }),
})

describe('properties', () => {
  test('what serializeHeader writes, readSafetensorsHeader reads', async () => {
    await fc.assert(
      fc.asyncProperty(header, async ({ tensors, metadata }) => {
        const written = serializeHeader(tensors, metadata)
        const file = await fileOf(written.header)
        await truncate(file, written.fileBytes)
        const read = await readSafetensorsHeader(file)
        expect(read.metadata).toEqual(metadata)
        expect(new Map(read.tensors.map(({ name, offset }) => [name, offset]))).toEqual(written.offsets)
        const described = new Map(read.tensors.map(({ name, dtype, shape }) => [name, { dtype, shape }]))
        expect(described).toEqual(new Map(tensors.map(({ name, dtype, shape }) => [name, { dtype, shape }])))
      }),
      { numRuns: 200 },
    )
  })

  test('no damage makes a tensor that lies outside the file or over another', async () => {
    const damage = fc.record({
      cut: fc.option(fc.nat(), { nil: undefined }),
      changes: fc.array(fc.record({ at: fc.nat(), to: fc.oneof(fc.nat(255), fc.constantFrom(...digits)) }), {
        maxLength: 4,
      }),
    })
    await fc.assert(
      fc.asyncProperty(header, damage, async ({ tensors, metadata }, { cut, changes }) => {
        const written = serializeHeader(tensors, metadata)
        let bytes = Buffer.alloc(written.fileBytes)
        bytes.set(written.header)
        if (cut !== undefined) bytes = bytes.subarray(0, cut % (bytes.length + 1))
        for (const { at, to } of changes) if (bytes.length > 0) bytes[at % bytes.length] = to
        const file = await fileOf(bytes)
        try {
          const read = await readSafetensorsHeader(file)
          let end = 8
          for (const tensor of read.tensors) {
            expect(tensor.offset).toBeGreaterThanOrEqual(end)
            end = tensor.offset + tensor.bytes
          }
          expect(end).toBeLessThanOrEqual(bytes.length)
        } catch (error) {
          if (!(error instanceof SparseGptError)) throw error
          expect(error.code).toBe('INVALID_CHECKPOINT')
        }
      }),
      { numRuns: 500 },
    )
  })
})

const digits = [...Buffer.from('0123456789[]{},:"')]

describeWithShared('real safetensors files', () => {
  test('TinyStories-656K', async () => {
    const { tensors } = await readSafetensorsHeader(
      sharedPath('models', 'TinyStories-656K', 'model.safetensors')!,
    )
    // Embeddings are tied, and the file names them after the head.
    const head = tensors.find(({ name }) => name === 'lm_head.weight')
    expect(head).toMatchObject({ shape: [2048, 128] })
  })
})
