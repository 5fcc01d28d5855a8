import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { write as writeFd } from 'node:fs'
import {
  lstat,
  mkdir,
  readFile,
  readdir,
  rm,
  symlink,
  truncate,
  writeFile,
  chmod,
  stat,
} from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, test } from '@jest/globals'
import { SparseGptError } from '../../src/errors.js'
import { openCheckpoint, type Checkpoint } from '../../src/files/checkpoint.js'
import { CheckpointWriter } from '../../src/files/writer.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { gather } from '../../src/files/strided.js'
import { filled, writeConfig, writeSafetensors } from './files.js'
import { statePickle, tensorPickle, torchFiles, writeTorch, zip } from './torch-archive.js'
import { expectError, temporaryFolder } from '../temporary.js'

const first = 'model-00001-of-00002.safetensors'
const second = 'model-00002-of-00002.safetensors'
const fdWrite = promisify(writeFd)

/** A folder `work` with a model `source` of two shards: a, b, c filled with 1, 2, 3; d, e with 4, 5. */
async function shardedSource() {
  const work = await temporaryFolder()
  const folder = join(work, 'source')
  await mkdir(folder)
  await writeConfig(folder)
  await writeSafetensors(join(folder, first), [filled('a', 5, 1), filled('b', 6, 2), filled('c', 7, 3)])
  await writeSafetensors(join(folder, second), [filled('d', 8, 4), filled('e', 9, 5)], { shard: 'two' })
  const weight_map = { a: first, b: first, c: first, d: second, e: second }
  await writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ weight_map }))
  await writeFile(join(folder, 'tokenizer.json'), '{"tokens":1}')
  return { work, folder, out: join(work, 'out'), source: await openCheckpoint(folder) }
}

/** A store that writes `bytes` bytes of `value`. */
const stores = (bytes: number, value: number) => async (fd: number, position: number) => {
  await fdWrite(fd, new Uint8Array(bytes).fill(value), 0, bytes, position)
}

/** The U8 tensor `name` of `bytes` elements, as the one part of the weight of that name. */
const part = (name: string, bytes: number, store: (fd: number, position: number) => Promise<void>) => [
  { name, dtype: 'U8' as const, shape: [bytes], store },
]

const fill = (name: string, bytes: number, value: number) => part(name, bytes, stores(bytes, value))

/** A native addon may reject with what is no Error of this realm. */
const fails = (reason: unknown) => Promise.resolve().then(() => Promise.reject(reason as Error))

async function valuesOf(checkpoint: Checkpoint): Promise<Record<string, number[]>> {
  const values: Record<string, number[]> = {}
  for (const { name, file, offset, bytes } of checkpoint.tensors.values()) {
    values[name] = [...new Set((await readFile(file)).subarray(offset, offset + bytes))]
  }
  return values
}

async function contentsOf(folder: string): Promise<Record<string, string>> {
  const names = (await readdir(folder)).sort()
  const entries = names.map(async (name) => [name, (await readFile(join(folder, name))).toString('base64')])
  return Object.fromEntries(await Promise.all(entries)) as Record<string, string>
}

describe('a committed checkpoint', () => {
  test('has the written tensors, the others from the source, and the same layout', async () => {
    const { work, folder, out, source } = await shardedSource()
    const before = await contentsOf(folder)
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await Promise.all([writer.write('e', fill('e', 9, 50)), writer.write('b', fill('b', 6, 20))])
    expect(await readdir(work)).not.toContain('out')
    await writer.commit()

    const result = await openCheckpoint(out)
    expect(await valuesOf(result)).toEqual({ a: [1], b: [20], c: [3], d: [4], e: [50] })
    expect(result.shards.map(({ file, metadata }) => [file, metadata])).toEqual([
      [first, { format: 'pt' }],
      [second, { shard: 'two' }],
    ])
    expect(result.shards.map(({ tensors }) => tensors.map(({ name }) => name))).toEqual([
      ['a', 'b', 'c'],
      ['d', 'e'],
    ])
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
    expect(await contentsOf(folder)).toEqual(before)
    await writer.abort()
    expect(await readdir(work)).toContain('out')
  })

  test('copies more than one chunk, byte by byte', async () => {
    const work = await temporaryFolder()
    const folder = join(work, 'source')
    await mkdir(folder)
    await writeConfig(folder)
    const data = Uint8Array.from({ length: 9 * 1024 * 1024 + 3 }, (_, i) => (i * 31 + (i >> 8)) & 255)
    await writeSafetensors(join(folder, 'model.safetensors'), [
      { name: 'big', dtype: 'U8', shape: [data.length], data },
      filled('small', 3, 9),
    ])
    const writer = await CheckpointWriter.create(await openCheckpoint(folder), join(work, 'out'), {
      force: false,
    })
    await writer.commit()
    expect(
      Buffer.compare(
        await readFile(join(work, 'out', 'model.safetensors')),
        await readFile(join(folder, 'model.safetensors')),
      ),
    ).toBe(0)
  })

  test('of .bin shards is made of safetensors shards with an index', async () => {
    const work = await temporaryFolder()
    const folder = join(work, 'source')
    await mkdir(folder)
    await writeConfig(folder)
    const [one, two] = ['pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin']
    const shared = { storage: '0', type: 'FloatStorage', storageSize: 6 }
    const tensors = {
      head: tensorPickle({ ...shared, offset: 0, shape: [2, 3], strides: [3, 1] }),
      embedding: tensorPickle({ ...shared, offset: 0, shape: [2, 3], strides: [3, 1] }),
      transposed: tensorPickle({ ...shared, offset: 0, shape: [3, 2], strides: [1, 3] }),
      tail: tensorPickle({ ...shared, offset: 3, shape: [3], strides: [1] }),
    }
    const values = Float32Array.of(0, 1, 2, 3, 4, 5)
    const storages = { '0': new Uint8Array(values.buffer) }
    await writeFile(join(folder, one), zip(torchFiles(statePickle(tensors), storages)))
    await writeTorch(join(folder, two), { norm: { shape: [2], values: Float32Array.of(7, 8) } })
    const weight_map = { head: one, embedding: one, transposed: one, tail: one, norm: two }
    await writeFile(join(folder, 'pytorch_model.bin.index.json'), JSON.stringify({ weight_map }))
    await writeFile(join(folder, 'tokenizer.json'), '{}')

    const writer = await CheckpointWriter.create(await openCheckpoint(folder), join(work, 'out'), {
      force: false,
    })
    await writer.write('norm', [{ name: 'norm', dtype: 'F32', shape: [2], store: stores(8, 0) }])
    await writer.commit()

    const out = join(work, 'out')
    const files = ['config.json', 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    expect((await readdir(out)).sort()).toEqual([...files, 'model.safetensors.index.json', 'tokenizer.json'])
    const index = JSON.parse(await readFile(join(out, 'model.safetensors.index.json'), 'utf8')) as unknown
    expect(index).toEqual({
      metadata: { total_size: 3 * 24 + 12 + 8 },
      weight_map: {
        head: files[1],
        embedding: files[1],
        transposed: files[1],
        tail: files[1],
        norm: files[2],
      },
    })
    const floats: Record<string, number[]> = {}
    const result = await openCheckpoint(out)
    for (const tensor of result.tensors.values()) {
      floats[tensor.name] = [...new Float32Array(gather(tensor).buffer as ArrayBuffer)]
    }
    expect(floats).toEqual({
      head: [0, 1, 2, 3, 4, 5],
      embedding: [0, 1, 2, 3, 4, 5],
      transposed: [0, 3, 1, 4, 2, 5],
      tail: [3, 4, 5],
      norm: [0, 0],
    })
    expect(result.shards.map(({ metadata }) => metadata)).toEqual([{ format: 'pt' }, { format: 'pt' }])
  })

  test('of a single .bin file is a single safetensors file', async () => {
    const work = await temporaryFolder()
    await writeConfig(work)
    await writeTorch(join(work, 'pytorch_model.bin'), { a: { shape: [2], values: Float32Array.of(1, 2) } })
    const writer = await CheckpointWriter.create(await openCheckpoint(work), join(work, 'out'), {
      force: false,
    })
    await writer.commit()
    expect((await readdir(join(work, 'out'))).sort()).toEqual(['config.json', 'model.safetensors'])
  })

  test('has the files that belong to the model, and only those', async () => {
    const { folder, out, source } = await shardedSource()
    const kept = [
      'generation_config.json',
      'vocab.json',
      'merges.txt',
      'LICENSE',
      'chat_template.jinja',
      'x.model',
    ]
    const left = [
      'pytorch_model.bin',
      'a.pt',
      'a.pth',
      'a.gguf',
      'tf_model.h5',
      'flax_model.msgpack',
      'm.onnx',
    ]
    left.push('other.safetensors', 'pytorch_model.bin.index.json')
    for (const name of [...kept, ...left]) await writeFile(join(folder, name), name)
    await mkdir(join(folder, 'onnx'))
    await writeFile(join(folder, 'shared.txt'), 'linked')
    await symlink(join(folder, 'shared.txt'), join(folder, 'link.txt'))
    await symlink(join(folder, 'nothing'), join(folder, 'dangling.txt'))
    await chmod(join(folder, 'LICENSE'), 0o444)
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await writer.commit()
    const names = [first, second, 'config.json', 'model.safetensors.index.json', 'tokenizer.json']
    expect((await readdir(out)).sort()).toEqual([...names, ...kept, 'shared.txt', 'link.txt'].sort())
    expect(await readFile(join(out, 'merges.txt'), 'utf8')).toBe('merges.txt')
    expect((await lstat(join(out, 'link.txt'))).isFile()).toBe(true)
    expect((await stat(join(out, 'LICENSE'))).mode & 0o200).toBe(0o200)
  })

  test('has no index of shards when the source is a single file', async () => {
    const { work, folder } = await shardedSource()
    await writeSafetensors(join(folder, 'model.safetensors'), [filled('a', 5, 1)])
    const writer = await CheckpointWriter.create(await openCheckpoint(folder), join(work, 'out'), {
      force: false,
    })
    await writer.commit()
    expect((await readdir(join(work, 'out'))).sort()).toEqual([
      'config.json',
      'model.safetensors',
      'tokenizer.json',
    ])
  })

  test('gets the parent folders it needs', async () => {
    const { work, source } = await shardedSource()
    const out = join(work, 'x', 'y', 'out')
    const writer = await CheckpointWriter.create(source, `${out}/`, { force: false })
    await writer.commit()
    expect((await openCheckpoint(out)).tensors.size).toBe(5)
  })
})

describe('create refuses', () => {
  test('an existing folder without force', async () => {
    const { out, source } = await shardedSource()
    await mkdir(out)
    await expectError(
      CheckpointWriter.create(source, out, { force: false }),
      'OUTPUT_EXISTS',
      /out exists.*--force/,
    )
  })

  test('a file in the place of the folder, even with force', async () => {
    const { out, source } = await shardedSource()
    await writeFile(out, 'precious')
    await expectError(CheckpointWriter.create(source, out, { force: true }), 'OUTPUT_EXISTS', /not a folder/)
    await expectError(
      CheckpointWriter.create(source, join(out, 'below'), { force: true }),
      'INVALID_OPTION',
      /cannot be used/,
    )
    expect(await readFile(out, 'utf8')).toBe('precious')
  })

  test('the source folder, also through a link', async () => {
    const { work, folder, source } = await shardedSource()
    await symlink(folder, join(work, 'alias'))
    for (const out of [folder, join(work, 'alias'), join(work, 'nothing', '..', 'source')]) {
      await expectError(
        CheckpointWriter.create(source, out, { force: true }),
        'INVALID_OPTION',
        /source model/,
      )
    }
  })

  test('a folder that holds the source, or the files its links lead to', async () => {
    const { work, folder, source } = await shardedSource()
    await expectError(CheckpointWriter.create(source, work, { force: true }), 'INVALID_OPTION', /contains/)
    const links = await temporaryFolder()
    for (const name of await readdir(folder)) await symlink(join(folder, name), join(links, name))
    const linked = await openCheckpoint(links)
    await expectError(CheckpointWriter.create(linked, folder, { force: true }), 'INVALID_OPTION', /contains/)
  })

  test('a disk with too little space, naming need and have', async () => {
    const { work, source } = await shardedSource()
    const tensor = { ...source.tensors.get('a')!, dtype: 'F32' as const, shape: [2 ** 50], bytes: 2 ** 52 }
    const huge = { ...source, shards: [{ file: first, metadata: {}, tensors: [tensor] }] }
    await expectError(
      CheckpointWriter.create(huge, join(work, 'x', 'out'), { force: false }),
      'WRITE_FAILED',
      /45035\d+ bytes .*needed, \d+ bytes .*free/,
    )
    expect(await readdir(work)).toEqual(['source'])
  })

  test('a parent that cannot be written to', async () => {
    const { source } = await shardedSource()
    await expectError(
      CheckpointWriter.create(source, '/proc/sparsegpt-test/out', { force: false }),
      'WRITE_FAILED',
      /\/proc\/sparsegpt-test\/out/,
    )
  })

  test('a source folder that has gone', async () => {
    const { folder, out, source } = await shardedSource()
    await rm(folder, { recursive: true })
    await expectError(CheckpointWriter.create(source, out, { force: false }), 'FILE_NOT_FOUND', /source/)
  })
})

describe('a writer that fails', () => {
  test('names the tensor, keeps the cause, then refuses to commit and leaves nothing', async () => {
    const { work, out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await writer.write('a', fill('a', 5, 10))
    const cause = new Error('device on fire')
    const error = await expectError(
      writer.write(
        'b',
        part('b', 6, () => Promise.reject(cause)),
      ),
      'WRITE_FAILED',
      /tensor "b".*device on fire/,
    )
    expect(error.cause).toBe(cause)
    await expectError(writer.commit(), 'WRITE_FAILED', /tensor "b" could not be written/)
    expect(await readdir(work)).toEqual(['source'])
    await writer.abort()
  })

  test('says that the disk is full', async () => {
    const { out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    const full = Object.assign(new Error('write'), { code: 'ENOSPC' })
    await expectError(
      writer.write(
        'a',
        part('a', 5, () => Promise.reject(full)),
      ),
      'WRITE_FAILED',
      /tensor "a".*disk is full/,
    )
    await writer.abort()
  })

  test('also when a store throws at once, or something that is no Error', async () => {
    const { out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await expectError(
      writer.write(
        'a',
        part('a', 5, () => {
          throw new Error('at once')
        }),
      ),
      'WRITE_FAILED',
      /at once/,
    )
    await expectError(
      writer.write(
        'b',
        part('b', 6, () => fails({ code: 'ENOSPC' })),
      ),
      'WRITE_FAILED',
      /disk is full/,
    )
    await writer.abort()
  })

  test("passes the package's own errors on", async () => {
    const { out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    const aborted = new SparseGptError('ABORTED', 'stopped')
    await expect(
      writer.write(
        'a',
        part('a', 5, () => Promise.reject(aborted)),
      ),
    ).rejects.toBe(aborted)
    await writer.abort()
  })

  test('to write a tensor twice, or one that does not exist', async () => {
    const { out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await writer.write('a', fill('a', 5, 10))
    await expectError(writer.write('a', fill('a', 5, 10)), 'INTERNAL', /"a" is written twice/)
    await expectError(writer.write('nope', fill('nope', 5, 10)), 'INTERNAL', /no tensor "nope"/)
    await writer.commit()
    await expectError(writer.write('b', fill('b', 6, 10)), 'INTERNAL', /done/)
    await expectError(writer.commit(), 'INTERNAL', /done/)
  })

  test('because the source became shorter', async () => {
    const { work, folder, out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await truncate(join(folder, second), 20)
    await expectError(writer.commit(), 'INVALID_CHECKPOINT', /model-00002.*shorter/)
    expect(await readdir(work)).toEqual(['source'])
    await writer.abort()
  })

  test('because a file of the source has gone', async () => {
    const { work, folder, out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await rm(join(folder, 'tokenizer.json'))
    await expectError(writer.commit(), 'WRITE_FAILED', /tokenizer\.json/)
    expect(await readdir(work)).toEqual(['source'])
  })

  test('because the output has appeared in the meantime', async () => {
    const { work, out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await mkdir(out)
    await expectError(writer.commit(), 'OUTPUT_EXISTS', /exists/)
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
    expect(await readdir(out)).toEqual([])
  })
})

describe('abort', () => {
  test('removes everything, created parents too, and can be repeated', async () => {
    const { work, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, join(work, 'x', 'y', 'out'), { force: false })
    await writer.write('a', fill('a', 5, 10))
    expect((await readdir(join(work, 'x', 'y')))[0]).toMatch(/^out\.partial-\d+-[0-9a-f]{8}$/)
    await writer.abort()
    await writer.abort()
    expect(await readdir(work)).toEqual(['source'])
    await expectError(writer.write('b', fill('b', 6, 10)), 'INTERNAL', /aborted/)
    await expectError(writer.commit(), 'INTERNAL', /aborted/)
  })

  test('waits for a running write before it closes the file', async () => {
    const { work, out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    let proceed = () => {}
    const gate = new Promise<void>((resolve) => (proceed = resolve))
    const store = async (fd: number, position: number) => {
      await gate
      await stores(5, 10)(fd, position)
    }
    const writing = writer.write('a', part('a', 5, store))
    const aborting = writer.abort()
    proceed()
    await Promise.all([writing, aborting])
    expect(await readdir(work)).toEqual(['source'])
  })

  test('stops a running commit', async () => {
    const { work, out, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, out, { force: false })
    const committing = expectError(writer.commit(), 'ABORTED', /stopped/)
    await writer.abort()
    await committing
    expect(await readdir(work)).toEqual(['source'])
  })

  test('leaves what others put into the created parents', async () => {
    const { work, source } = await shardedSource()
    const writer = await CheckpointWriter.create(source, join(work, 'x', 'out'), { force: false })
    await writeFile(join(work, 'x', 'theirs'), '')
    await writer.abort()
    expect(await readdir(join(work, 'x'))).toEqual(['theirs'])
  })
})

describe('force', () => {
  async function oldModel(folder: string) {
    await mkdir(folder)
    for (const name of ['config.json', 'model.safetensors', 'old.txt'])
      await writeFile(join(folder, name), 'old')
  }

  test('replaces nothing that is not a model', async () => {
    const { work, out, source } = await shardedSource()
    await mkdir(out)
    await writeFile(join(out, 'config.json'), '{}')
    await writeFile(join(out, 'thesis.txt'), 'mine')
    const creating = CheckpointWriter.create(source, out, { force: true })
    await expectError(creating, 'OUTPUT_EXISTS', /out is not a model folder/)
    expect((await readdir(out)).sort()).toEqual(['config.json', 'thesis.txt'])
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
  })

  test('is never without an output, whenever one looks', async () => {
    const { work, out, source } = await shardedSource()
    await oldModel(out)
    // A process that does nothing but look.
    const script = `
      const { statSync } = require('node:fs')
      process.stdout.write('ready')
      let looks = 0
      process.stdin.on('end', () => process.exit(looks > 100 ? 0 : 2)).resume()
      const look = () => { for (let i = 0; i < 200; i++, looks++) statSync(${JSON.stringify(out)}); setImmediate(look) }
      look()
    `
    const watcher = spawn(process.execPath, ['-e', script], { stdio: ['pipe', 'pipe', 'inherit'] })
    await once(watcher.stdout, 'data')
    for (let i = 0; i < 20; i++) {
      await (await CheckpointWriter.create(source, out, { force: true })).commit()
    }
    watcher.stdin.end()
    expect(await once(watcher, 'exit')).toEqual([0, null])
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
  })

  test('does not take away what another job is writing', async () => {
    const { work, out, source } = await shardedSource()
    const first = await CheckpointWriter.create(source, out, { force: false })
    for (const force of [false, true]) {
      const second = CheckpointWriter.create(source, out, { force })
      await expectError(second, 'OUTPUT_EXISTS', /is writing .*out/)
    }
    await first.commit()
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
  })

  test('an output that was moved aside by a process that was killed comes back', async () => {
    const { work, out, source } = await shardedSource()
    await oldModel(`${out}.replaced-0123abcd`)
    await expectError(CheckpointWriter.create(source, out, { force: false }), 'OUTPUT_EXISTS', /exists/)
    expect((await readdir(out)).sort()).toEqual(['config.json', 'model.safetensors', 'old.txt'])
    await oldModel(`${out}.replaced-0123abcd`)
    await (await CheckpointWriter.create(source, out, { force: true })).commit()
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
  })

  test('replaces the old folder as a whole', async () => {
    const { work, out, source } = await shardedSource()
    await oldModel(out)
    const writer = await CheckpointWriter.create(source, out, { force: true })
    expect(await readdir(out)).toContain('old.txt')
    await writer.commit()
    expect(await readdir(out)).not.toContain('old.txt')
    expect((await openCheckpoint(out)).tensors.size).toBe(5)
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
  })

  test('leaves the old folder when the job fails or is aborted', async () => {
    const { work, out, source } = await shardedSource()
    await oldModel(out)
    const failing = await CheckpointWriter.create(source, out, { force: true })
    await failing
      .write(
        'a',
        part('a', 5, () => Promise.reject(new Error('no'))),
      )
      .catch(() => undefined)
    await expectError(failing.commit(), 'WRITE_FAILED', /"a"/)
    const aborted = await CheckpointWriter.create(source, out, { force: true })
    await aborted.abort()
    expect(await readdir(out)).toContain('old.txt')
    expect((await readdir(work)).sort()).toEqual(['out', 'source'])
  })

  test('replaces a link, not what it leads to', async () => {
    const { work, out, source } = await shardedSource()
    await mkdir(join(work, 'target'))
    await writeFile(join(work, 'target', 'kept.txt'), '')
    await symlink(join(work, 'target'), out)
    const writer = await CheckpointWriter.create(source, out, { force: true })
    await writer.commit()
    expect((await lstat(out)).isDirectory()).toBe(true)
    expect(await readdir(join(work, 'target'))).toEqual(['kept.txt'])
  })
})

describeWithShared('a real model', () => {
  test('copied without a change is the same', async () => {
    const source = await openCheckpoint(sharedPath('models', 'TinyStories-656K')!)
    const out = join(await temporaryFolder(), 'copy')
    const writer = await CheckpointWriter.create(source, out, { force: false })
    await writer.commit()
    const copy = await openCheckpoint(out)
    expect((await readdir(out)).sort()).toEqual((await readdir(source.folder)).sort())
    for (const [name, { file, offset, bytes }] of source.tensors) {
      const other = copy.tensors.get(name)!
      const [a, b] = await Promise.all([readFile(file), readFile(other.file)])
      expect(a.subarray(offset, offset + bytes).equals(b.subarray(other.offset, other.offset + bytes))).toBe(
        true,
      )
    }
  })
})
