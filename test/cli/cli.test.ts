import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmdirSync, statSync, writeFileSync } from 'node:fs'
import { copyFile, readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'
import { program, sparsegpt } from './run.js'

let model: string
let text: string
let parent: string
let out: string
beforeAll(async () => {
  parent = await temporaryFolder()
  model = await writeTinyModel(join(parent, 'model'))
  text = join(parent, 'text.txt')
  await writeFile(text, asText(randomTokens(600)))
  out = join(parent, 'out')
})

test('plan prints a table, or one object with --json', async () => {
  const table = await sparsegpt(['plan', model, '--samples', '8', '--seqlen', '32', '--offload', '--no-time'])
  expect(table).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/2 blocks.*peak memory.*1\d\d\.\d MB/s),
  })
  expect(table.stdout).toMatch(/file for activations/)
  const json = await sparsegpt([
    'plan',
    model,
    '--pattern',
    '2:4',
    '--samples',
    '8',
    '--seqlen',
    '32',
    '--no-time',
    '--json',
  ])
  expect(json).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\{.*\}\n$/) })
  expect(JSON.parse(json.stdout)).toMatchObject({
    model: 'model',
    blocks: 2,
    memory: { peak: expect.any(Number), parts: { gram: expect.any(Number) } },
    disk: { offloaded: 0 },
    flop: { solve: expect.any(Number) },
  })
  const wrong = await sparsegpt(['plan', model, '--pattern', '4:2'])
  expect(wrong).toMatchObject({ code: 2, stderr: expect.stringMatching(/plan: --pattern: must be n:m/) })
})

test('--allocation takes a name or a recipe, of which an error names the field', async () => {
  const target = join(parent, 'allocated')
  const job = ['prune', model, '--out', target, '--force', ...calibrated(), '--sparsity', '0.6']
  const owl = await sparsegpt([...job, '--allocation', 'owl'])
  expect(owl.stdout).toMatch(/ {2}by block: \d\d\.\d\d %, \d\d\.\d\d %\n/)
  const recipe = join(parent, 'recipe.json')
  await writeFile(recipe, '{"entries": [{"blocks": 0, "sparsity": 0.5}]}')
  const json = await sparsegpt([...job, '--allocation', recipe, '--json'])
  const { targets } = JSON.parse(json.stdout) as { targets: number[] }
  expect(targets).toEqual([0.5, expect.closeTo(0.7, 9)])
  await writeFile(recipe, '{"entries": [{"blocks": 0, "sparsity": 1.5}]}')
  const wrong = await sparsegpt(['plan', model, '--allocation', recipe])
  expect(wrong).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/recipe\.json: field entries\.0\.sparsity: .*given: 1\.5/),
  })
})

test('a job beyond --memory is refused, --offload lets it run', async () => {
  const target = join(parent, 'limited')
  const job = ['prune', model, '--out', target, ...calibrated()]
  const refused = await sparsegpt([...job, '--memory', '10MB'])
  expect(refused).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/memory allows 10\.00 MB: use offload/),
  })
  expect(readdirSync(parent)).not.toContain('limited')
  expect(await sparsegpt([...job, '--memory', '2GB', '--offload', parent])).toMatchObject({ code: 0 })
})

const calibrated = () => ['--calibration', text, '--samples', '8', '--seqlen', '32']

test('prune --json prints one object with what the contract names; eval and inspect agree with it', async () => {
  const run = await sparsegpt([
    'prune',
    model,
    '--out',
    out,
    ...calibrated(),
    '--pattern',
    '2:4',
    '--eval',
    text,
    '--json',
  ])
  expect(run).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\{.*\}\n$/) })
  const report = JSON.parse(run.stdout)
  expect(report).toMatchObject({ model, out, method: 'sparsegpt', sparsity: { target: 0.5, achieved: 0.5 } })
  expect(report.seconds).toBeGreaterThan(0)
  expect(report.peakRssBytes).toBeGreaterThan(1e7)
  expect(report.layers).toHaveLength(14)
  expect(report.layers[0]).toEqual({
    name: 'model.layers.0.self_attn.q_proj',
    rows: 24,
    columns: 24,
    sparsity: 0.5,
    loss: expect.any(Number),
    error: expect.any(Number),
    seconds: expect.any(Number),
  })

  const evaluated = await sparsegpt(['eval', out, '--dataset', text, '--seqlen', '32', '--json'])
  expect(JSON.parse(evaluated.stdout)).toEqual({
    perplexity: report.perplexity,
    tokens: 600,
    windows: 18,
    seqlen: 32,
  })

  const inspected = JSON.parse((await sparsegpt(['inspect', out, '--json'])).stdout)
  const down = inspected.tensors.find(
    ({ name }: { name: string }) => name === 'model.layers.1.mlp.down_proj.weight',
  )
  const patterns = ['2:4', '4:8']
  expect(down).toEqual({ name: down.name, shape: [24, 40], dtype: 'F32', sparsity: 0.5, patterns })
  expect(inspected.sparsity).toBeGreaterThan(0.4)
  expect(inspected.sparsity).toBeLessThan(0.5)
})

test('without --json a person reads a summary and tables', async () => {
  const target = join(parent, 'readable')
  const pruned = await sparsegpt([
    'prune',
    model,
    '--out',
    target,
    '--method',
    'magnitude',
    '--sparsity',
    '0.5',
    '--profile',
  ])
  expect(pruned.stdout).toMatch(/14 layers pruned to 50\.\d\d % zeros \(magnitude\)/)
  expect(pruned.stdout).toMatch(/forward [\d.]+ s \(\d+ %\).* solve [\d.]+ s .*other [\d.]+ s/)
  expect((await sparsegpt(['eval', target, '--dataset', text])).stdout).toMatch(
    /^perplexity [\d.]+ over 9 windows of 64 tokens\n$/,
  )
  expect((await sparsegpt(['inspect', target])).stdout).toMatch(
    /mlp\.down_proj\.weight.*24 × 40.*F32.*50\.\d\d %/,
  )
})

describe('bad usage ends with 2 and says which option', () => {
  test.each<[string[], RegExp]>([
    [['--sparsity', '1.5'], /--sparsity: .*1\.5/],
    [['--sparsity', 'half'], /--sparsity.*number/],
    [['--pattern', '4:2'], /--pattern: .*2:4 or 4:8/],
    [['--pattern', '2:5'], /--pattern: .*24 columns/],
    [['--seqlen', '0'], /--seqlen: .*0/],
    [['--device', 'tpu'], /--device.*cpu/],
    [['--method', 'obd'], /--method.*magnitude/],
    [['--learning-rate', '0.1'], /--learning-rate: is of the reconstruction/],
    [['--reconstruct', '--learning-rate', '2'], /--learning-rate: .*2/],
    [['--reconstruct', '--batch', '0'], /--batch: .*0/],
    [['--reconstruct', '0', '--batch', '1'], /--reconstruct: .*0/],
    [['--frobnicate'], /unknown option '--frobnicate'/],
  ])('%j', async (flags, message) => {
    const target = join(parent, 'bad')
    const run = await sparsegpt(['prune', model, '--out', target, ...calibrated(), ...flags])
    expect(run).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(message) })
    expect(readdirSync(parent)).not.toContain('bad')
  })

  test('a missing --out, a missing calibration', async () => {
    expect(await sparsegpt(['prune', model])).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/--out/),
    })
    const run = await sparsegpt(['prune', model, '--out', join(parent, 'bad')])
    expect(run).toMatchObject({ code: 2, stderr: expect.stringMatching(/--calibration: is needed/) })
  })

  test.each(['--save-tokens', '--text-field'])('%s without a text', async (flag) => {
    const args = [
      'prune',
      model,
      '--out',
      join(parent, 'bad'),
      '--method',
      'magnitude',
      flag,
      'x.safetensors',
    ]
    const message = expect.stringMatching(new RegExp(`${flag}: is of the calibration text`))
    expect(await sparsegpt(args)).toMatchObject({ code: 2, stderr: message })
  })
})

describe('a job that fails ends with 1, says why, and writes nothing', () => {
  async function fails(args: string[], message: RegExp, environment: NodeJS.ProcessEnv = {}) {
    const before = readdirSync(parent)
    const run = await sparsegpt(args, undefined, environment)
    expect(run).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(message) })
    expect(readdirSync(parent)).toEqual(before)
  }

  test('no such model, no such text', async () => {
    await fails(
      ['prune', join(parent, 'nowhere'), '--out', join(parent, 'x'), ...calibrated()],
      /nowhere.*FILE_NOT_FOUND/s,
    )
    await fails(
      ['eval', model, '--dataset', join(parent, 'nothing.txt')],
      /nothing\.txt does not exist.*FILE_NOT_FOUND/,
    )
  })

  test('a data set by name, and a hub id, that are not in the cache while offline', async () => {
    const offline = { HF_HUB_OFFLINE: '1', HF_HOME: join(parent, 'empty-cache') }
    const args = ['prune', model, '--out', join(parent, 'x'), '--calibration', 'wikitext2']
    await fails(args, /wikitext.*not in the cache.*DOWNLOAD_FAILED/is, offline)
    await fails(['inspect', 'nobody/model'], /nobody\/model.*not in the cache.*DOWNLOAD_FAILED/s, offline)
  })

  test('a truncated and a lying checkpoint', async () => {
    const bad = await writeTinyModel(join(parent, 'truncated'))
    const weights = join(bad, 'model.safetensors')
    await truncate(weights, (await readFile(weights)).length - 1)
    await fails(['inspect', bad], /model\.safetensors.*truncated.*INVALID_CHECKPOINT/s)
    await copyFile(join(model, 'model.safetensors'), weights)
    const bytes = await readFile(weights)
    await writeFile(weights, bytes.toString('latin1').replace('[24,24]', '[24,99]'), 'latin1')
    await fails(
      ['prune', bad, '--out', join(parent, 'x'), ...calibrated()],
      /bytes of data.*INVALID_CHECKPOINT/s,
    )
  })

  test('an unknown architecture', async () => {
    const bad = await writeTinyModel(join(parent, 'unknown'))
    await writeFile(join(bad, 'config.json'), '{"model_type":"perceptron"}')
    await fails(
      ['prune', bad, '--out', join(parent, 'x'), ...calibrated()],
      /"perceptron" is not supported.*llama.*UNSUPPORTED_MODEL/s,
    )
  })

  test('NaN in a weight', async () => {
    const bad = await writeTinyModel(join(parent, 'nan'), 'llama', (name, values) => {
      if (name.endsWith('layers.0.mlp.up_proj.weight')) values[0] = NaN
    })
    await fails(
      ['prune', bad, '--out', join(parent, 'x'), ...calibrated()],
      /layers\.0\.mlp\.up_proj.*NON_FINITE/s,
    )
  })

  test('a text that is shorter than a window', async () => {
    const short = join(parent, 'short.txt')
    await writeFile(short, 'w1 w2')
    await fails(
      ['prune', model, '--out', join(parent, 'x'), '--calibration', short],
      /2 tokens.*INVALID_TEXT/s,
    )
  })

  test('an output folder that exists', async () => {
    const taken = join(parent, 'taken')
    mkdirSync(taken)
    writeFileSync(join(taken, 'mine.txt'), 'mine')
    await fails(['prune', model, '--out', taken, ...calibrated()], /taken exists.*OUTPUT_EXISTS/s)
    expect(readFileSync(join(taken, 'mine.txt'), 'utf8')).toBe('mine')
    const force = ['prune', model, '--out', taken, ...calibrated(), '--force']
    await fails(force, /taken is not a model folder.*OUTPUT_EXISTS/s)
    expect(readFileSync(join(taken, 'mine.txt'), 'utf8')).toBe('mine')
    for (const name of ['config.json', 'model.safetensors']) writeFileSync(join(taken, name), '')
    expect(await sparsegpt(force)).toMatchObject({ code: 0 })
    expect(readdirSync(taken)).not.toContain('mine.txt')
  })

  const canMount = process.platform === 'linux' && process.getuid?.() === 0
  if (!canMount) console.warn('SKIPPED: "a disk that is full" needs root to mount a small tmpfs')
  ;(canMount ? test : test.skip).each(['prune', 'distill'])(
    'a disk that is too full for %s',
    async (command) => {
      // To distill there is room for the output, but not for the state on the way.
      const distills = command === 'distill'
      const size = distills ? statSync(join(model, 'model.safetensors')).size + 2 ** 18 : 2 ** 15
      const more = distills ? ['--dense', model] : []
      const disk = join(await temporaryFolder(), 'disk')
      mkdirSync(disk)
      try {
        execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', disk], { stdio: 'ignore' })
      } catch {
        console.warn('SKIPPED: "a disk that is full": mounting a tmpfs is not allowed here')
        return
      }
      try {
        const run = await sparsegpt([command, model, '--out', join(disk, 'out'), ...calibrated(), ...more])
        expect(run).toMatchObject({
          code: 1,
          stdout: '',
          stderr: expect.stringMatching(/too full.*WRITE_FAILED/s),
        })
        expect(readdirSync(disk)).toEqual([])
      } finally {
        execFileSync('umount', [disk])
        rmdirSync(disk)
      }
    },
  )

  test('a file that grows beyond what the shell allows is named', async () => {
    const args = ['prune', model, '--out', join(parent, 'limited-file'), '--method', 'magnitude']
    const quoted = [process.execPath, program, ...args].map((arg) => `'${arg}'`).join(' ')
    const { status, stderr } = spawnSync('bash', ['-c', `ulimit -f 8; exec ${quoted}`], { encoding: 'utf8' })
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringMatching(
        /cannot write tensor ".*proj\.weight" to .*limited-file\.partial-.*model\.safetensors: .*\[WRITE_FAILED\]/,
      ),
    })
    expect(readdirSync(parent).filter((name) => name.startsWith('limited-file'))).toEqual([])
  })

  test.each(['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const)('%s in the middle', async (signal) => {
    const long = join(parent, `long-${signal}.txt`)
    await writeFile(long, asText(randomTokens(3000)))
    const before = readdirSync(parent)
    const args = ['prune', model, '--out', join(parent, 'stopped'), '--calibration', long]
    const run = await sparsegpt([...args, '--samples', '20000'], (kill) => {
      const started = setInterval(() => {
        // The partial folder beside the output shows that pruning is under way.
        if (!readdirSync(parent).some((name) => name.startsWith('stopped.partial'))) return
        clearInterval(started)
        kill(signal)
      }, 5)
    })
    const code = signal === 'SIGINT' ? 130 : 1
    expect(run).toMatchObject({ code, stdout: '', stderr: expect.stringMatching(/stopping.*ABORTED/s) })
    expect(readdirSync(parent)).toEqual(before)
  })
})

test('progress goes to stderr as plain lines where there is no terminal', async () => {
  const long = join(parent, 'long.txt')
  await writeFile(long, asText(randomTokens(3000)))
  // 5 s pass between lines: enough samples for one of them.
  const target = join(parent, 'slow')
  const args = [
    'prune',
    model,
    '--out',
    target,
    '--calibration',
    long,
    '--samples',
    '60000',
    '--threads',
    '1',
  ]
  const run = await sparsegpt(args, (kill, stderr) => {
    const seen = setInterval(() => {
      // If none comes, the run ends by itself, and the test fails.
      if (!/pruning \d+ %/.test(stderr())) return
      clearInterval(seen)
      kill('SIGINT')
    }, 50)
  })
  expect(run.stdout).toBe('')
  expect(run.stderr).toMatch(/^pruning \d+ %(, .* left)?, block \d\/2: /m)
})
