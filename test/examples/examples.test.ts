// The programs of examples/, run as their comments say.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, readdir, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { inspect } from '../../src/sdk/inspect.js'
import { project } from '../docs/blocks.js'
import { startHub, World } from '../docs/world.js'
import type { HubServer } from '../hub/hub-server.js'

const tsx = join(project, 'node_modules', '.bin', 'tsx')
const loader = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href
const example = (name: string) => join(project, 'examples', `${name}.ts`)

let hub: HubServer
let world: World
const running = new Set<ChildProcess>()

beforeAll(async () => {
  hub = await startHub()
  world = await World.make(hub)
})
afterAll(async () => {
  for (const child of running) child.kill('SIGKILL')
  await hub.stop()
})

/** Runs an example to its end. */
async function run(name: string, ...args: string[]): Promise<string> {
  const { code, output } = await world.run(tsx, [example(name), ...args])
  if (code !== 0) throw new Error(`${name}.ts: exit code ${String(code)}:\n${output}`)
  return output
}

/** A program that runs on. */
class Running {
  output = ''
  readonly ended: Promise<number | null>

  constructor(
    readonly child: ChildProcess,
    private readonly name: string,
  ) {
    running.add(child)
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (this.output += text))
    }
    this.ended = new Promise((done) => child.once('close', done))
    void this.ended.then(() => running.delete(child))
  }

  /** Waits until it has said this. */
  async says(pattern: RegExp): Promise<RegExpExecArray> {
    const end = Date.now() + 100_000
    while (Date.now() < end) {
      const found = pattern.exec(this.output)
      if (found) return found
      if (this.child.exitCode !== null) break
      await setTimeout(20)
    }
    throw new Error(`${this.name} has not said ${String(pattern)}:\n${this.output}`)
  }
}

/** Starts an example in node itself, so that a signal reaches it. */
const start = (name: string, ...args: string[]) =>
  new Running(
    spawn(process.execPath, ['--import', loader, example(name), ...args], { cwd: world.folder }),
    name,
  )

const zerosOf = async (folder: string) => (await inspect(join(world.folder, folder))).sparsity

/** A port that nobody listens on. */
async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as AddressInfo
  await new Promise((done) => server.close(done))
  return port
}

test('prune.ts prunes, and says what it costs', async () => {
  const output = await run('prune', 'opt-125m', 'train.txt', 'test.txt', 'prune-out')
  expect(output).toMatch(
    /prune-out: 14 layers, 50\.0 % zeros\nperplexity [\d.]+ -> [\d.]+\nlargest loss: model\./,
  )
  const failed = await world.run(tsx, [example('prune'), 'opt-125m', 'train.txt', 'test.txt', 'prune-out'])
  expect(failed).toMatchObject({ code: 1, output: expect.stringContaining('OUTPUT_EXISTS') })
})

test('chat.ts calibrates on conversations', async () => {
  const output = await run('chat', 'opt-125m', 'chat.jsonl', 'chat-out')
  expect(output).toMatch(/^600 of 600 conversations have an answer\nchat-out: 50\.0 % zeros\n$/)
})

test('compare.ts prints a row for each method', async () => {
  const output = await run('compare', 'opt-125m', 'train.txt', 'test.txt')
  for (const method of ['dense', 'magnitude', 'wanda', 'sparsegpt']) expect(output).toContain(`'${method}'`)
})

test('small.ts keeps 2:4 through quantization, and generates', async () => {
  const output = await run('small', 'opt-125m', 'train.txt', 'small-out')
  expect(output).toContain('14 matrices are 2:4 after rounding')
  expect(output).toMatch(/[\d.]+ tokens\/s/)
  expect(existsSync(join(world.folder, 'small-out', 'packed.safetensors'))).toBe(true)
})

test('cuda.ts compares with the GPU, or says that there is none', async () => {
  const output = await run('cuda', 'opt-125m', 'train.txt')
  expect(output).toMatch(/no CUDA here: \S|'cuda'/)
  expect(output).toContain("'cpu'")
})

describe('service.ts', () => {
  let service: Running
  let address: string
  beforeAll(async () => {
    service = start('service', '0')
    const [, port = ''] = await service.says(/listening on (\d+)/)
    address = `http://127.0.0.1:${port}`
  })

  const job = (out: string, model = 'opt-125m') =>
    `${address}/prune?${new URLSearchParams({ model, text: 'train.txt', out, sparsity: '0.5' }).toString()}`

  test('prunes with progress as events, and reports', async () => {
    const response = await fetch(job('service-out'))
    expect(response.headers.get('content-type')).toBe('text/event-stream')
    const events = (await response.text()).trim().split('\n\n')
    expect(events.filter((event) => event.startsWith('event: progress')).length).toBeGreaterThan(5)
    const [event, data = ''] = events.at(-1)!.split('\ndata: ')
    expect(event).toBe('event: report')
    expect(JSON.parse(data)).toMatchObject({ sparsity: { target: 0.5 }, layers: { length: 14 } })
    expect(await zerosOf('service-out')).toBeGreaterThan(0.1)
  })

  test('tells a failure as an event, a bad request by its status', async () => {
    const text = await (await fetch(job('service-failed', 'nowhere'))).text()
    expect(text).toMatch(/event: failure\ndata: \{"code":"(FILE_NOT_FOUND|DOWNLOAD_FAILED)"/)
    expect((await fetch(`${address}/prune`)).status).toBe(400)
  })

  test('stops the job of a client that has left, and takes the next one', async () => {
    const client = new AbortController()
    const response = await fetch(job('service-left'), { signal: client.signal })
    await response.body!.getReader().read()
    client.abort()
    await service.says(/service-left: ABORTED/)
    expect(existsSync(join(world.folder, 'service-left'))).toBe(false)
    expect((await fetch(job('service-next'))).status).toBe(200)
  })
})

describe('queue.ts', () => {
  let redis: Running
  let url: string
  beforeAll(async () => {
    const found = spawnSync('redis-server', ['--version'], { encoding: 'utf8' })
    if (found.error) throw new Error('redis-server is missing: node scripts/setup.mjs --redis installs it')
    const port = await freePort()
    url = `redis://127.0.0.1:${port}`
    const options = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']
    redis = new Running(spawn('redis-server', options, { cwd: world.folder }), 'redis-server')
    await redis.says(/Ready to accept connections/)
  })

  test('a worker prunes what is queued; one that was killed is gone on from', async () => {
    // A model of six blocks, so that there is time to kill the worker behind the first.
    const model = join(project, 'models', 'sotu-3m')
    await run('queue', 'add', url, model, 'train.txt', 'queue-1')
    const first = start('queue', 'work', url)
    // The first block is finished and noted when a layer of the second is pruned.
    await first.says(/queue-1: model\.layers\.1\.\S+ pruned/)
    first.child.kill('SIGKILL')
    await first.ended
    expect(existsSync(join(world.folder, 'queue-1'))).toBe(false)
    const [partial = ''] = (await readdir(world.folder)).filter((name) => name.startsWith('queue-1.partial-'))
    expect(await readdir(join(world.folder, partial))).not.toEqual([])
    await run('queue', 'add', url, model, 'train.txt', 'queue-2')

    const second = start('queue', 'work', url)
    await second.says(/queue-1: done, 50\.0 % zeros/)
    await second.says(/queue-2: done, 50\.0 % zeros/)
    // The first block was not pruned again.
    expect(second.output).toMatch(/queue-1: model\.layers\.5\.\S+ pruned/)
    expect(second.output).not.toMatch(/queue-1: model\.layers\.0\.\S+ pruned/)
    second.child.kill('SIGTERM')
    expect(await second.ended).toBe(0)

    const weights = (folder: string) => readFile(join(world.folder, folder, 'model.safetensors'))
    expect((await weights('queue-1')).equals(await weights('queue-2'))).toBe(true)
    await rm(join(world.folder, 'queue-2'), { recursive: true })
  })
})
