import { existsSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { nodes, pack, programOf, Project, repository } from './installed.js'

const model = join(repository, 'models', 'sotu-3m')
const megabyte = 1e6

let tarball: string
let folder: string
let project: Project
let installed: string
let seconds: number

beforeAll(async () => {
  tarball = pack(await temporaryFolder())
  folder = await temporaryFolder()
  writeFileSync(
    join(folder, 'package.json'),
    JSON.stringify({ name: 'app', version: '1.0.0', private: true }),
  )
  project = new Project(folder)
  const start = performance.now()
  const { code, stderr } = project.run('npm', ['install', tarball])
  seconds = (performance.now() - start) / 1000
  expect({ code, stderr }).toMatchObject({ code: 0 })
  installed = join(folder, 'node_modules', 'sparsegpt')
})

/** The lines of an app that prunes the small model in memory and prints the share of zeros. */
const pruning = (print: string) => `
  const model = await loadModel(${JSON.stringify(model)})
  const tokens = Int32Array.from({ length: 1024 }, (_, i) => (i * 7) % 900)
  const report = await prune(model, { sparsity: 0.5, calibration: { tokens, samples: 4, sequenceLength: 64 } })
  await model.dispose()
  ${print}(report.sparsity.achieved.toFixed(2))`

describe('an installation without a compiler', () => {
  test('takes seconds, and compiles nothing', () => {
    const size = statSync(tarball).size / megabyte
    console.log(`tarball ${size.toFixed(2)} MB, installed in ${seconds.toFixed(1)} s`)
    expect(size).toBeLessThan(6)
    // Less than ten on an idle machine; a busy one, or a slow registry, is no defect of the package.
    expect(seconds).toBeLessThan(60)
    expect(existsSync(join(installed, 'build'))).toBe(false)
    expect(existsSync(join(folder, 'node_modules', 'cmake-js'))).toBe(false)
  })

  test('has a first pruned model within a minute', () => {
    project.write(
      'text.txt',
      'The state of the union is strong, and the people are its strength. '.repeat(3000),
    )
    const start = performance.now()
    const args = ['--out', 'pruned', '--calibration', 'text.txt', '--sparsity', '0.5', '--seqlen', '256']
    const { code, stderr } = project.run('npx', ['sparsegpt', 'prune', model, ...args])
    expect({ code, stderr }).toMatchObject({ code: 0 })
    expect(existsSync(join(folder, 'pruned', 'model.safetensors'))).toBe(true)
    const taken = (performance.now() - start) / 1000
    console.log(`first pruned model after ${taken.toFixed(1)} s`)
    expect(taken).toBeLessThan(60)
  })

  test('names commands that exist there', () => {
    const { stdout } = project.run('node', [
      ...['--input-type=module', '--eval'],
      "import { devices } from 'sparsegpt'; console.log(JSON.stringify(devices()))",
    ])
    const cuda = (JSON.parse(stdout) as { kind: string; reason?: string }[]).find(
      ({ kind }) => kind === 'cuda',
    )
    expect(cuda?.reason).toMatch(/npx sparsegpt build cuda/)
    for (const [library, compiler] of [
      ['cuda', /nvcc was not found/],
      ['mpi', /mpicxx was not found/],
    ] as const) {
      // nvcc is found there whatever the PATH is.
      if (library === 'cuda' && existsSync('/usr/local/cuda')) continue
      const { code, stderr } = project.run('npx', ['sparsegpt', 'build', library])
      expect(stderr).toMatch(compiler)
      expect(code).toBe(1)
    }
  })

  test('says its version and the commit', () => {
    const { version } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')) as {
      version: string
    }
    const { stdout } = project.run('npx', ['sparsegpt', '--version'])
    expect(stdout).toMatch(
      new RegExp(`^${version.replaceAll('.', '\\.')} \\(commit [0-9a-f]{12}(-dirty)?\\)\\n$`),
    )
  })

  test('holds no pointer to a file that it does not hold, and the licences of what is linked in', () => {
    const dist = join(installed, 'dist')
    const files = readdirSync(dist, { recursive: true, encoding: 'utf8' }).filter((name) =>
      /\.[jt]s$/.test(name),
    )
    expect(files.length).toBeGreaterThan(100)
    expect(
      files.filter((name) => readFileSync(join(dist, name), 'utf8').includes('sourceMappingURL')),
    ).toEqual([])
    const licences = readFileSync(join(installed, 'prebuilds', 'THIRD-PARTY-LICENCES.txt'), 'utf8')
    for (const name of ['node-addon-api', 'libc++', 'libunwind']) expect(licences).toContain(name)
  })
})

describe.each(nodes())('Node %s', (_, node) => {
  const onNode = () => new Project(folder, node)

  test('imports', () => {
    const app = `import { loadModel, prune } from 'sparsegpt'; ${pruning('console.log')}`
    expect(onNode().run('node', ['--input-type=module', '--eval', app])).toEqual({
      code: 0,
      stdout: '0.50\n',
      stderr: '',
    })
  })

  test('requires', () => {
    const app = `const { loadModel, prune } = require('sparsegpt'); (async () => { ${pruning('console.log')} })()`
    expect(onNode().run('node', ['--eval', app])).toMatchObject({ code: 0, stdout: '0.50\n' })
  })

  test('runs it in a worker thread', () => {
    project.write(
      'worker.mjs',
      `import { isMainThread, parentPort, Worker } from 'node:worker_threads'
       import { loadModel, prune } from 'sparsegpt'
       if (isMainThread) new Worker(new URL(import.meta.url)).on('message', console.log)
       else { ${pruning('parentPort.postMessage')} }`,
    )
    expect(onNode().run('node', ['worker.mjs'])).toEqual({ code: 0, stdout: '0.50\n', stderr: '' })
  })

  test('prunes in an HTTP server, which answers meanwhile', async () => {
    project.write(
      'server.mjs',
      `import { createServer } from 'node:http'
       import { loadModel, prune } from 'sparsegpt'
       let running = 0
       const server = createServer(async (request, response) => {
         if (request.url === '/running') return response.end(String(running))
         running++
         ${pruning('response.end')}
         running--
       })
       server.listen(0, '127.0.0.1', () => console.log(server.address().port))`,
    )
    const server = onNode().start('node', ['server.mjs'])
    try {
      const [port] = (await Promise.race([
        new Promise((done) => createInterface(server.stdout).once('line', (line) => done([line]))),
        new Promise((_done, fail) => server.once('exit', (code) => fail(new Error(`exit code ${code}`)))),
      ])) as [string]
      const ask = async (path: string) => await (await fetch(`http://127.0.0.1:${port}${path}`)).text()
      let finished = false
      const pruned = ask('/prune').finally(() => (finished = true))
      const seen = new Set<string>()
      while (!finished) seen.add(await ask('/running'))
      expect(await pruned).toBe('0.50')
      expect(seen).toContain('1')
    } finally {
      server.kill()
    }
  })

  test('npx sparsegpt --help', () => {
    const { code, stdout, stderr } = onNode().run('npx', ['sparsegpt', '--help'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^Usage: sparsegpt/)
  })
})

describe('strict TypeScript', () => {
  const source = `
    import { loadModel, prune, SparseGptError, type PruneReport } from 'sparsegpt'
    export async function half(folder: string): Promise<PruneReport> {
      const model = await loadModel(folder)
      try {
        const tokens = Int32Array.from({ length: 1024 }, (_, i) => (i * 7) % 900)
        return await prune(model, {
          sparsity: 0.5,
          calibration: { tokens, samples: 4, sequenceLength: 64 },
          onProgress: ({ fraction }) => fraction.toFixed(2),
        })
      } finally {
        await model.dispose()
      }
    }
    // @ts-expect-error Types are there, and say what is allowed.
    half('.').then((report) => report.nothing, (error: unknown) => error instanceof SparseGptError)
    half(${JSON.stringify(model)}).then(({ sparsity }) => { console.log(sparsity.achieved.toFixed(2)) }, console.error)`

  function compile(name: string, options: string[]) {
    project.write(name, source)
    const modules = join(repository, 'node_modules')
    return project.run('node', [
      join(modules, 'typescript', 'bin', 'tsc'),
      ...['--strict', '--exactOptionalPropertyTypes', '--target', 'es2022'],
      ...[
        '--types',
        'node',
        '--typeRoots',
        join(modules, '@types'),
        '--outDir',
        'compiled',
        ...options,
        name,
      ],
    ])
  }

  test.each([
    ['node16', 'app.mts', ['--module', 'node16', '--moduleResolution', 'node16']],
    ['nodenext', 'app.mts', ['--module', 'nodenext', '--moduleResolution', 'nodenext']],
    ['nodenext, CommonJS', 'app.cts', ['--module', 'nodenext', '--esModuleInterop', 'false']],
    ['bundler', 'app.ts', ['--module', 'esnext', '--moduleResolution', 'bundler', '--noEmit']],
    [
      'CommonJS',
      'app.ts',
      ['--module', 'commonjs', '--moduleResolution', 'node10', '--esModuleInterop', 'false'],
    ],
  ])('%s', (_, name, options) => {
    rmSync(join(folder, 'compiled'), { recursive: true, force: true })
    expect(compile(name, options)).toEqual({ code: 0, stdout: '', stderr: '' })
    if (options.includes('--noEmit')) return
    const [compiled] = readdirSync(join(folder, 'compiled'))
    expect(project.run('node', [join('compiled', compiled!)])).toMatchObject({ code: 0, stdout: '0.50\n' })
  })
})

test('with a compiler, the library for MPI is built from the package', () => {
  const mpi = programOf('mpicxx')
  if (mpi === '') {
    console.warn('SKIPPED: there is no mpicxx')
    return
  }
  const { code, stderr } = project.run('npx', ['sparsegpt', 'build', 'mpi'], {
    PATH: `${join(folder, 'node_modules', '.bin')}:${process.env.PATH!}`,
  })
  expect({ code, stderr }).toMatchObject({ code: 0 })
  expect(existsSync(join(installed, 'build', 'Release', 'libsparsegpt_mpi.so'))).toBe(true)
})
