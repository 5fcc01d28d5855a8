import { mkdir, readFile, readdir, readlink, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeEach, describe, expect, jest, test } from '@jest/globals'
import { resolveModel } from '../../src/hub/model-folder.js'
import type { DownloadProgress } from '../../src/hub/snapshot.js'
import { inspect } from '../../src/sdk/inspect.js'
import { loadModel, plan, prune } from '../../src/index.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { writeTinyModel } from '../tiny-model.js'
import { useHub } from './environment.js'
import { commit, HubServer } from './hub-server.js'

const at = useHub()
const id = 'org/tiny.model-1'

let tiny: Record<string, Buffer>
beforeEach(async () => {
  const folder = await writeTinyModel(await temporaryFolder())
  const names = await readdir(folder)
  tiny = Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name))])),
  )
  at.hub.add(id, {
    ...tiny,
    'README.md': 'read me',
    LICENSE: 'Apache-2.0',
    'pytorch_model.bin': Buffer.alloc(5000),
    'tf_model.h5': Buffer.alloc(5000),
    'onnx/model.onnx': Buffer.alloc(5000),
    'modeling.py': 'import os',
  })
})

const storage = () => join(at.home, 'hub', 'models--org--tiny.model-1')
const weights = 'model.safetensors'

/** A URL where nobody answers. */
async function closedServer(): Promise<string> {
  const server = await HubServer.start()
  const { url } = server
  await server.stop()
  return url
}

describe('a model on the hub', () => {
  test('is loaded by its id; only what is needed is downloaded, into the standard cache', async () => {
    const progress: DownloadProgress[] = []
    const model = await loadModel(id, { threads: 1, onDownload: (step) => progress.push(step) })
    expect(model.name).toBe(id)
    expect(model.folder).toBe(join(storage(), 'snapshots', commit))
    expect((await model.logits([[1, 2, 3]])).shape).toEqual([1, 3, 32])
    await model.dispose()
    expect((await readdir(model.folder)).sort()).toEqual([
      'LICENSE',
      'config.json',
      weights,
      'tokenizer.json',
    ])
    expect(await readFile(join(storage(), 'refs', 'main'), 'utf8')).toBe(commit)
    expect(await readlink(join(model.folder, weights))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/)
    expect(await readFile(join(model.folder, weights))).toEqual(tiny[weights])
    const totalBytes = Object.values(tiny).reduce((sum, file) => sum + file.length, 'Apache-2.0'.length)
    expect(progress.at(-1)).toEqual({ repository: id, file: weights, bytes: totalBytes, totalBytes })
    expect(progress.map(({ bytes }) => bytes)).toEqual(
      progress.map(({ bytes }) => bytes).sort((a, b) => a - b),
    )
  })

  test('has its custom code and the settings of its processor carried along, which nobody runs', async () => {
    const ran = join(await temporaryFolder(), 'ran')
    const code = `open(${JSON.stringify(ran)}, 'w')`
    const auto_map = { AutoConfig: 'configuration.Config', AutoModelForCausalLM: 'modeling.Model' }
    const config = JSON.stringify({ ...(JSON.parse(String(tiny['config.json'])) as object), auto_map })
    at.hub.add('org/own-code', {
      ...tiny,
      'config.json': config,
      'modeling.py': code,
      'configuration.py': code,
      'preprocessor_config.json': '{"size": 8}',
      'video_preprocessor_config.json': '{}',
      'processor_config.json': '{}',
    })
    const out = join(await temporaryFolder(), 'out')
    const model = await loadModel('org/own-code', { threads: 1 })
    await prune(model, { sparsity: 0.5, method: 'magnitude', out })
    await model.dispose()
    const text = (name: string) => readFile(join(out, name), 'utf8')
    expect(await text('config.json')).toBe(config)
    for (const name of ['modeling.py', 'configuration.py']) expect(await text(name)).toBe(code)
    expect(await text('preprocessor_config.json')).toBe('{"size": 8}')
    expect(await readdir(out)).toEqual(
      expect.arrayContaining(['processor_config.json', 'video_preprocessor_config.json']),
    )
    await expect(readFile(ran)).rejects.toThrow('ENOENT')
  })

  test('is planned from its config.json, the only file that is downloaded', async () => {
    expect(await plan(id, { sequenceLength: 32 })).toMatchObject({ model: id, blocks: 2 })
    expect(
      at.hub.requests.filter((request) => /resolve/.test(request)).every((r) => r.includes('config.json')),
    ).toBe(true)
    expect(await readdir(join(storage(), 'snapshots', commit))).toEqual(['config.json'])
  })

  test('is not downloaded again, and is found offline', async () => {
    const { folder } = await resolveModel(id)
    at.hub.requests.length = 0
    expect(await resolveModel(id)).toEqual({ folder, name: id })
    expect(at.hub.requests.filter((request) => /resolve|cdn|paths-info/.test(request))).toEqual([])
    at.hub.requests.length = 0
    process.env['HF_HUB_OFFLINE'] = '1'
    expect(await resolveModel(id)).toEqual({ folder, name: id })
    expect(await resolveModel(`${id}@${commit}`)).toEqual({ folder, name: `${id}@${commit}` })
    expect((await inspect(id)).tensors).toHaveLength(20)
    expect(at.hub.requests).toEqual([])
  })

  test('is taken from the cache when the hub cannot be reached, with a warning', async () => {
    const { folder } = await resolveModel(id)
    await resolveModel(`${id}@${commit}`)
    process.env['HF_ENDPOINT'] = await closedServer()
    const warn = jest.spyOn(process, 'emitWarning').mockReturnValue()
    try {
      expect((await resolveModel(id)).folder).toBe(folder)
      expect((await resolveModel(`${id}@${commit}`)).folder).toBe(folder)
      expect(warn).toHaveBeenCalledWith(
        expect.stringMatching(/127\.0\.0\.1:\d+ cannot be reached.*cache is used/),
      )
    } finally {
      warn.mockRestore()
    }
  })

  test('that Python has downloaded is not fetched again', async () => {
    // As huggingface_hub leaves it: blobs named by their ETag, relative links, a ref.
    const snapshot = join(storage(), 'snapshots', commit)
    await mkdir(join(storage(), 'blobs'), { recursive: true })
    await mkdir(join(storage(), 'refs'))
    await mkdir(snapshot, { recursive: true })
    await writeFile(join(storage(), 'refs', 'main'), commit)
    for (const [name, contents] of Object.entries({ ...tiny, LICENSE: 'Apache-2.0' })) {
      await writeFile(join(storage(), 'blobs', name), contents)
      await symlink(`../../blobs/${name}`, join(snapshot, name))
    }
    expect((await resolveModel(id)).folder).toBe(snapshot)
    expect(at.hub.requests.filter((request) => /resolve|cdn/.test(request))).toEqual([])
  })

  test('shares unchanged files between commits', async () => {
    await resolveModel(id)
    const next = 'b'.repeat(40)
    at.hub.add(id, { ...tiny, 'config.json': tiny['config.json']!.toString() + '\n' }, { commit: next })
    at.hub.ranges.length = 0
    expect((await resolveModel(id)).folder).toBe(join(storage(), 'snapshots', next))
    expect(at.hub.ranges).toHaveLength(1)
  })

  test('may be given at a tag or a commit', async () => {
    const tagged = await resolveModel(`${id}@v1`)
    expect(tagged.folder).toBe(join(storage(), 'snapshots', commit))
    expect(await readFile(join(storage(), 'refs', 'v1'), 'utf8')).toBe(commit)
    at.hub.requests.length = 0
    await resolveModel(`${id}@${commit}`)
    expect(at.hub.requests).toHaveLength(1)
  })

  test('in shards is downloaded by its index, .bin only where there is nothing else', async () => {
    const shards = { 'pytorch_model-00001-of-00002.bin': 'one', 'pytorch_model-00002-of-00002.bin': 'two' }
    const weight_map = { a: 'pytorch_model-00001-of-00002.bin', b: 'pytorch_model-00002-of-00002.bin' }
    const index = 'pytorch_model.bin.index.json'
    const files = { 'config.json': '{}', [index]: JSON.stringify({ weight_map }), ...shards }
    at.hub.add('org/sharded', { ...files, 'pytorch_model-00003-of-00003.bin': 'of another save' })
    const { folder } = await resolveModel('org/sharded')
    expect((await readdir(folder)).sort()).toEqual(Object.keys(files).sort())
    expect(await readFile(join(folder, weight_map.b), 'utf8')).toBe('two')
  })

  test('that is packed is downloaded where there is nothing else', async () => {
    const shard = 'packed-00001-of-00001.safetensors'
    const index = 'packed.safetensors.index.json'
    const files = { 'config.json': '{}', [index]: JSON.stringify({ weight_map: { a: shard } }), [shard]: 'a' }
    at.hub.add('org/packed', { ...files, 'packed-00002-of-00002.safetensors': 'of another save' })
    const { folder } = await resolveModel('org/packed')
    expect((await readdir(folder)).sort()).toEqual(Object.keys(files).sort())
    const whole = { 'config.json': '{}', 'packed.safetensors': 'a' }
    at.hub.add('org/packed-whole', whole)
    expect((await readdir((await resolveModel('org/packed-whole')).folder)).sort()).toEqual(
      Object.keys(whole),
    )
  })
})

describe('a download', () => {
  test('that drops half way goes on where it stopped', async () => {
    at.hub.cuts = [0, 3]
    // Small files come first: these cuts hit them, and then the weights.
    const { folder } = await resolveModel(id)
    expect(await readFile(join(folder, weights))).toEqual(tiny[weights])
    at.hub.add('org/big', { 'config.json': '{}', [weights]: Buffer.alloc(300_000, 'abcdefg') })
    at.hub.cuts = [2, 100_000]
    at.hub.ranges.length = 0
    const big = await resolveModel('org/big')
    expect(await readFile(join(big.folder, weights))).toEqual(Buffer.alloc(300_000, 'abcdefg'))
    const resumed = at.hub.ranges.flatMap((range) => (range === undefined ? [] : [range]))
    expect(resumed).toHaveLength(1)
    expect(Number(/^bytes=(\d+)-299999$/.exec(resumed[0]!)?.[1])).toBeGreaterThan(0)
  })

  test('that was stopped is taken up by the next call', async () => {
    const contents = Buffer.alloc(300_000, '0123456789a')
    at.hub.add('org/big', { 'config.json': '{}', [weights]: contents })
    const controller = new AbortController()
    at.hub.cuts = [2, 200_000]
    const stopped = resolveModel('org/big', {
      signal: controller.signal,
      onDownload: ({ file, bytes }) => {
        if (file === weights && bytes > 100_000) controller.abort()
      },
    })
    await expectError(stopped, 'ABORTED', /stopped/)
    const blobs = join(at.home, 'hub', 'models--org--big', 'blobs')
    expect((await readdir(blobs)).some((name) => name.endsWith('.incomplete'))).toBe(true)
    at.hub.cuts = []
    at.hub.ranges.length = 0
    const { folder } = await resolveModel('org/big')
    expect(await readFile(join(folder, weights))).toEqual(contents)
    expect(at.hub.ranges).toEqual([expect.stringMatching(/^bytes=[1-9]\d+-299999$/)])
    expect((await readdir(blobs)).some((name) => name.endsWith('.incomplete'))).toBe(false)
  })

  test('is tried again while the hub is busy', async () => {
    at.hub.add('org/small', { 'config.json': '{}' })
    const warn = jest.spyOn(process, 'emitWarning').mockReturnValue()
    try {
      await resolveModel('org/small')
      at.hub.add('org/small', { 'config.json': '{ }' }, { commit: 'c'.repeat(40) })
      // revision, tree and paths-info answer; the look at the file fails twice.
      const answer = at.hub.failures
      answer.push(...([undefined, undefined, undefined, 503, 429] as unknown as number[]))
      const { folder } = await resolveModel('org/small')
      expect(await readFile(join(folder, 'config.json'), 'utf8')).toBe('{ }')
    } finally {
      warn.mockRestore()
    }
  })

  test('with other contents than announced is refused and removed', async () => {
    at.hub.corrupt = true
    await expectError(resolveModel(id), 'DOWNLOAD_FAILED', /damaged.*removed: try again/)
    expect((await readdir(join(storage(), 'blobs'))).filter((name) => name.endsWith('.incomplete'))).toEqual(
      [],
    )
    at.hub.corrupt = false
    await resolveModel(id)
  })

  test('by two callers at once is one file', async () => {
    const [a, b] = await Promise.all([resolveModel(id), resolveModel(id)])
    expect(a).toEqual(b)
    expect(await readFile(join(a.folder, weights))).toEqual(tiny[weights])
  })
})

describe('refused', () => {
  test('a repository that needs a token, without one and with another', async () => {
    at.hub.add('org/private', tiny, { token: 'hf_secret' })
    await expectError(
      resolveModel('org/private'),
      'DOWNLOAD_FAILED',
      /status 401.*set HF_TOKEN to one from http/,
    )
    process.env['HF_TOKEN'] = 'hf_other'
    await expectError(
      resolveModel('org/private'),
      'DOWNLOAD_FAILED',
      /status 401.*the token \(HF_TOKEN\) may not/,
    )
    process.env['HF_TOKEN'] = 'hf_secret'
    expect((await resolveModel('org/private')).name).toBe('org/private')
  })

  test('not when the token is in the file that logging in writes', async () => {
    at.hub.add('org/private', tiny, { token: 'hf_secret' })
    await writeFile(join(at.home, 'token'), 'hf_secret\n')
    expect((await resolveModel('org/private')).name).toBe('org/private')
  })

  test('a gated repository, with the page to visit', async () => {
    at.hub.add('org/gated', tiny, { gated: true })
    await expectError(
      resolveModel('org/gated'),
      'DOWNLOAD_FAILED',
      /status 403.*accept its conditions on http.*org\/gated/,
    )
  })

  test('a repository, a revision or a model that is not there', async () => {
    await expectError(resolveModel('org/none'), 'DOWNLOAD_FAILED', /the model org\/none.*401.*check the name/)
    await expectError(resolveModel(`${id}@v9`), 'DOWNLOAD_FAILED', /@v9.*404.*revision/)
    at.hub.add('org/data', { 'data.csv': '1' })
    await expectError(resolveModel('org/data'), 'DOWNLOAD_FAILED', /no config\.json/)
  })

  test('what is not in the cache, when offline', async () => {
    process.env['HF_HUB_OFFLINE'] = 'true'
    await expectError(resolveModel(id), 'DOWNLOAD_FAILED', /not in the cache.*HF_HUB_OFFLINE is set/)
    expect(at.hub.requests).toEqual([])
  })

  test('a hub that cannot be reached', async () => {
    process.env['HF_ENDPOINT'] = await closedServer()
    await expectError(resolveModel(id), 'DOWNLOAD_FAILED', /127\.0\.0\.1:\d+ cannot be reached.*ECONNREFUSED/)
    process.env['HF_ENDPOINT'] = 'nowhere'
    await expectError(resolveModel(id), 'INVALID_OPTION', /HF_ENDPOINT: nowhere/)
  })

  test('a server that names no commit, or files elsewhere', async () => {
    at.hub.add('org/odd', { 'config.json': '{}' }, { commit: '../../x' })
    await expectError(resolveModel('org/odd'), 'DOWNLOAD_FAILED', /does not answer as the hub does/)
    const index = JSON.stringify({ weight_map: { a: '../../../x.safetensors' } })
    at.hub.add('org/odd', { 'config.json': '{}', 'model.safetensors.index.json': index })
    await expectError(resolveModel('org/odd'), 'INVALID_CHECKPOINT', /not the plain name/)
  })

  test.each(['no--body', './org/name', '/org/name', 'a/b/c', 'a--b/c', 'org/name@../x', 'org/name@', '@x/y'])(
    '%s, which is neither a folder nor a hub id',
    async (name) => {
      await expectError(resolveModel(name), 'FILE_NOT_FOUND', /does not exist.*hub id such as/)
      expect(at.hub.requests).toEqual([])
    },
  )
})

test('a local folder wins over a hub id', async () => {
  const work = await temporaryFolder()
  await writeTinyModel(join(work, id))
  const before = process.cwd()
  process.chdir(work)
  try {
    expect(await resolveModel(id)).toEqual({ folder: join(process.cwd(), id), name: 'tiny.model-1' })
    expect(at.hub.requests).toEqual([])
  } finally {
    process.chdir(before)
  }
})
