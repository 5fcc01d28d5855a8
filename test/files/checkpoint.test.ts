import { mkdir, readFile, readdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { openCheckpoint, readConfig } from '../../src/files/checkpoint.js'
import { readSafetensorsHeader } from '../../src/files/safetensors.js'
import { CheckpointWriter } from '../../src/files/writer.js'
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

describe('the index decides', () => {
  test('a tensor that it does not mention is no part of the checkpoint', async () => {
    const { tensors, shards } = await openCheckpoint(await shardedFolder({ a: first, c: second }))
    expect([...tensors.keys()]).toEqual(['a', 'c'])
    expect(shards.map((shard) => shard.tensors.map(({ name }) => name))).toEqual([['a'], ['c']])
  })

  test('of a tensor in two shards the one is taken that it names', async () => {
    for (const [shard, value] of [
      [first, 1],
      [second, 9],
    ] as const) {
      const folder = await shardedFolder({ a: shard, b: first, c: second })
      await writeSafetensors(join(folder, second), [filled('c', 4, 3), filled('a', 2, 9)])
      const checkpoint = await openCheckpoint(folder)
      const { file, offset } = checkpoint.tensors.get('a')!
      expect((await readFile(file))[offset]).toBe(value)
      const out = join(await temporaryFolder(), 'out')
      await (await CheckpointWriter.create(checkpoint, out, { force: false })).commit()
      const copy = await openCheckpoint(out)
      expect(copy.shards.flatMap(({ tensors }) => tensors.map(({ name }) => name)).sort()).toEqual([
        'a',
        'b',
        'c',
      ])
      const written = copy.tensors.get('a')!
      expect((await readFile(written.file))[written.offset]).toBe(value)
    }
  })

  test('what is left out is not written', async () => {
    const out = join(await temporaryFolder(), 'out')
    const checkpoint = await openCheckpoint(await shardedFolder({ a: first, c: second }))
    await (await CheckpointWriter.create(checkpoint, out, { force: false })).commit()
    const { tensors } = await openCheckpoint(out)
    expect([...tensors.keys()]).toEqual(['a', 'c'])
    expect((await readSafetensorsHeader(join(out, first))).tensors).toHaveLength(1)
  })
})

describe('openCheckpoint says what it is', () => {
  const pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n'
  const page = '<!DOCTYPE html>\n<html><body>Not Found</body></html>'

  test.each(['model.safetensors', 'pytorch_model.bin', 'config.json'])(
    '%s is a pointer or a page',
    async (name) => {
      const folder = await temporaryFolder()
      await writeConfig(folder)
      await writeFile(join(folder, name), pointer)
      await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /is a Git LFS pointer.*git lfs pull/)
      await writeFile(join(folder, name), page)
      await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /is a web page.*download it again/)
    },
  )

  test('the index of shards is a pointer', async () => {
    const folder = await shardedFolder()
    await writeIndex(folder, pointer)
    await expectError(openCheckpoint(folder), 'INVALID_CHECKPOINT', /index\.json is a Git LFS pointer/)
  })

  test.each([first, 'pytorch_model-00001-of-00002.bin'])('%s without an index', async (shard) => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await writeFile(join(folder, shard), '')
    await expectError(
      openCheckpoint(folder),
      'FILE_NOT_FOUND',
      /index\.json does not exist, but there is .*00001-of-00002.*download the index/,
    )
  })

  test('the root of a repository in the cache of the hub', async () => {
    const folder = join(await temporaryFolder(), 'models--org--some-name')
    const snapshot = join(folder, 'snapshots', '0123abcd')
    for (const path of ['blobs', 'refs', join('snapshots', '0123abcd')])
      await mkdir(join(folder, path), { recursive: true })
    const error = await expectError(openCheckpoint(folder), 'FILE_NOT_FOUND', /hub id org\/some-name/)
    expect(error.message).toContain(snapshot)
    await expectError(readConfig(folder), 'FILE_NOT_FOUND', /in the hub's cache/)
  })

  test('a LoRA adapter, with and without a config.json', async () => {
    const folder = await temporaryFolder()
    const settings = { peft_type: 'LORA', base_model_name_or_path: 'org/base' }
    await writeFile(join(folder, 'adapter_config.json'), JSON.stringify(settings))
    await writeSafetensors(join(folder, 'adapter_model.safetensors'), [filled('a', 2, 1)])
    const message = /is a LoRA adapter of "org\/base".*merge/
    await expectError(openCheckpoint(folder), 'UNSUPPORTED_MODEL', message)
    await writeConfig(folder)
    await expectError(openCheckpoint(folder), 'UNSUPPORTED_MODEL', message)
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

  test.each(['pytorch_model.pt', 'tf_model.h5', 'model-q4.gguf'])(
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

  test('a folder in the place of the weights', async () => {
    const folder = await temporaryFolder()
    await writeConfig(folder)
    await mkdir(join(folder, 'model.safetensors'))
    await expectError(openCheckpoint(folder), 'FILE_NOT_FOUND', /is a folder, not a file/)
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
