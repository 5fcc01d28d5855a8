import { mkdir, readdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { filled, writeConfig, writeSafetensors } from './files.js'
import { writeTorch } from './torch-archive.js'
import { expectError, temporaryFolder } from '../temporary.js'

const first = 'model-00001-of-00002.safetensors'
const second = 'model-00002-of-00002.safetensors'

async function writeIndex(folder: string, index: unknown): Promise<void> {
  const text = typeof index === 'string' ? index : JSON.stringify(index)
  await writeFile(join(folder, 'model.safetensors.index.json'), text)
}

/** A folder with config.json, a and b in the first shard, c in the second, and the given weight_map. */
async function shardedFolder(map: Record<string, unknown> = { a: first, b: first, c: second }) {
  const folder = await temporaryFolder()
  await writeConfig(folder)
  await writeSafetensors(join(folder, first), [filled('a', 2, 1), filled('b', 3, 2)])
  await writeSafetensors(join(folder, second), [filled('c', 4, 3)], { format: 'pt', shard: '2' })
  await writeIndex(folder, { metadata: { total_size: 9 }, weight_map: map })
  return folder
}

describe('openCheckpoint opens', () => {
  test('a single file', async () => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await writeSafetensors(join(folder, 'model.safetensors'), [filled('a', 2, 1)])
    const checkpoint = await openCheckpoint(folder)
    expect(checkpoint.folder).toBe(folder)
    expect(checkpoint.config).toEqual({ model_type: 'llama' })
    expect(checkpoint.shards).toHaveLength(1)
    expect(checkpoint.shards[0]).toMatchObject({ file: 'model.safetensors', metadata: { format: 'pt' } })
    expect(checkpoint.tensors.get('a')).toMatchObject({ shape: [2], file: join(folder, 'model.safetensors') })
  })

  test('shards', async () => {
    const folder = await shardedFolder()
    const { shards, tensors } = await openCheckpoint(folder)
    expect(shards.map(({ file }) => file)).toEqual([first, second])
    expect(shards[1]?.metadata).toEqual({ format: 'pt', shard: '2' })
    expect([...tensors.keys()]).toEqual(['a', 'b', 'c'])
    expect(tensors.get('c')?.file).toBe(join(folder, second))
  })

  test('pytorch_model.bin, but model.safetensors rather', async () => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await writeTorch(join(folder, 'pytorch_model.bin'), { a: { shape: [2], values: Float32Array.of(1, 2) } })
    const { shards, tensors } = await openCheckpoint(folder)
    expect(shards.map(({ file, metadata }) => [file, metadata])).toEqual([
      ['pytorch_model.bin', { format: 'pt' }],
    ])
    expect(tensors.get('a')).toMatchObject({
      dtype: 'F32',
      shape: [2],
      file: join(folder, 'pytorch_model.bin'),
    })
    await writeSafetensors(join(folder, 'model.safetensors'), [filled('b', 2, 1)])
    expect([...(await openCheckpoint(folder)).tensors.keys()]).toEqual(['b'])
  })

  test('.bin shards', async () => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    const [one, two] = ['pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin']
    await writeTorch(join(folder, one), { a: { shape: [2], values: Float32Array.of(1, 2) } })
    await writeTorch(join(folder, two), { b: { shape: [1, 1], values: Float32Array.of(3) } })
    const index = JSON.stringify({ weight_map: { a: one, b: two } })
    await writeFile(join(folder, 'pytorch_model.bin.index.json'), index)
    const { shards, tensors } = await openCheckpoint(folder)
    expect(shards.map(({ file }) => file)).toEqual([one, two])
    expect(tensors.get('b')).toMatchObject({ shape: [1, 1], file: join(folder, two) })
  })

  test('files that are links, as in the hub cache', async () => {
    const blobs = await temporaryFolder()
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await writeSafetensors(join(blobs, 'abc123'), [filled('a', 2, 1)])
    await symlink(join(blobs, 'abc123'), join(folder, 'model.safetensors'))
    expect((await openCheckpoint(folder)).tensors.size).toBe(1)
  })
})

describe('openCheckpoint refuses', () => {
  test('a missing folder', async () => {
    await expectError(
      openCheckpoint('nobody/no-model'),
      'FILE_NOT_FOUND',
      /nobody\/no-model.*local model folder/,
    )
  })

  test('a file', async () => {
    const folder = await shardedFolder()
    await expectError(openCheckpoint(join(folder, first)), 'FILE_NOT_FOUND', /is a file/)
  })

  test('a folder without config.json', async () => {
    await expectError(openCheckpoint(await temporaryFolder()), 'FILE_NOT_FOUND', /no config\.json/)
  })

  test.each([
    ['[]', /must hold a JSON object/],
    ['null', /must hold a JSON object/],
    ['{', /not valid JSON/],
  ])('config.json of %s', async (text, message) => {
    const folder = await shardedFolder()
    await writeFile(join(folder, 'config.json'), text)
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', message)
  })

  test('a folder without weights', async () => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await expectError(openCheckpoint(folder), 'FILE_NOT_FOUND', /has no weights/)
  })

  test.each(['pytorch_model-00001-of-00002.bin', 'tf_model.h5', 'model-q4.gguf'])(
    'weights that are only %s',
    async (name) => {
      const folder = await temporaryFolder()
      await writeConfig(folder)
      await writeFile(join(folder, name), '')
      await expectError(openCheckpoint(folder), 'UNSUPPORTED_MODEL', /convert them/)
    },
  )

  test('an index of .bin files that names a file of another format', async () => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await writeTorch(join(folder, 'x.pkl'), {})
    const index = JSON.stringify({ weight_map: { a: 'x.pkl' } })
    await writeFile(join(folder, 'pytorch_model.bin.index.json'), index)
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /not the plain name of a \.bin file/)
  })

  test('a damaged shard', async () => {
    const folder = await shardedFolder()
    await writeFile(join(folder, second), 'x')
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /model-00002-of-00002/)
  })

  test('a missing shard', async () => {
    const folder = await shardedFolder({ a: first, b: first, c: 'model-00003.safetensors' })
    await expectError(openCheckpoint(folder), 'FILE_NOT_FOUND', /model-00003.*missing shard/)
  })

  test.each([
    ['../model-00001-of-00002.safetensors'],
    ['sub/x.safetensors'],
    ['sub\\x.safetensors'],
    ['/etc/x.safetensors'],
    ['C:x.safetensors'],
    ['..'],
    [''],
    ['config.json'],
    ['x\0.safetensors'],
    [7],
    [null],
  ])('a weight_map with the shard %j', async (shard) => {
    const folder = await shardedFolder({ a: first, b: first, c: shard })
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /"c".*not the plain name/)
  })

  test('an index without weight_map, or with one that is not a map', async () => {
    const folder = await shardedFolder()
    for (const index of [{}, { weight_map: [] }, { weight_map: {} }, { weight_map: 'x' }]) {
      await writeIndex(folder, index)
      await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /weight_map/)
    }
  })

  test('an index with a tensor twice', async () => {
    const folder = await shardedFolder()
    await writeIndex(folder, `{"weight_map":{"a":"${first}","b":"${first}","c":"${second}","a":"${first}"}}`)
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /"a" twice/)
  })

  test('a mapped tensor that is not in its shard', async () => {
    for (const map of [
      { a: first, b: second, c: second },
      { a: first, b: first, c: second, d: first },
    ]) {
      await expectError(
        openCheckpoint(await shardedFolder(map)),
        'INVALID_CHECKPOINT',
        /tensor "[bd]" is in .*not/,
      )
    }
  })

  test('a tensor that the index does not mention', async () => {
    const folder = await shardedFolder({ a: first, c: second })
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /does not mention tensor "b"/)
  })

  test('a tensor in two shards', async () => {
    const folder = await shardedFolder()
    await writeSafetensors(join(folder, second), [filled('c', 4, 3), filled('a', 2, 1)])
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /"a" in both/)
  })

  test('a folder in the place of the weights', async () => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await mkdir(join(folder, 'model.safetensors'))
    await expectError(openCheckpoint(folder), 'FILE_NOT_FOUND', /cannot be read/)
  })
})

describeWithShared('the shared models', () => {
  test('all open', async () => {
    const golden = sharedPath('golden', 'models')!
    const folders = (await readdir(golden, { withFileTypes: true })).filter((item) => item.isDirectory())
    expect(folders.length).toBeGreaterThan(0)
    for (const { name } of folders) {
      const checkpoint = await openCheckpoint(join(golden, name))
      expect(checkpoint.tensors.size).toBeGreaterThan(0)
    }
    expect((await openCheckpoint(sharedPath('models', 'TinyStories-656K')!)).config['model_type']).toBe(
      'llama',
    )
  })
})
