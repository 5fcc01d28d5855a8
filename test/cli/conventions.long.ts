import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { writeSafetensors } from '../files/files.js'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'
import { program, sparsegpt } from './run.js'

let parent: string
let model: string
let text: string
beforeAll(async () => {
  parent = await temporaryFolder()
  model = await writeTinyModel(join(parent, 'model'))
  text = join(parent, 'text.txt')
  await writeFile(text, asText(randomTokens(600)))
})

const windows = ['--samples', '8', '--seqlen', '32']
const job = (out: string, ...rest: string[]) => [
  ...['prune', model, '--out', join(parent, out), '--calibration', text, ...windows],
  ...rest,
]

/** Runs the command line on a terminal; Ctrl-C is pressed when `pattern` appears. */
function onTerminal(args: string[], pattern = ''): { code: number; output: string } {
  const script = fileURLToPath(new URL('terminal.py', import.meta.url))
  const { stdout } = spawnSync('python3', [script, pattern, process.execPath, program, ...args], {
    encoding: 'utf8',
    env: { ...process.env, TERM: 'xterm', NO_COLOR: '1' },
  })
  return JSON.parse(stdout) as { code: number; output: string }
}

describe('the text to evaluate on', () => {
  test('is --eval in every command; --dataset of eval and compare is the same', async () => {
    const measured = (flag: string) => sparsegpt(['eval', model, flag, text, '--seqlen', '32', '--json'])
    const [own, alias] = [await measured('--eval'), await measured('--dataset')]
    expect(own.code).toBe(0)
    expect(alias.stdout).toBe(own.stdout)
    const both = await sparsegpt(['eval', model, '--eval', text, '--dataset', model])
    expect(both).toMatchObject({ code: 2, stderr: expect.stringMatching(/--dataset: is the same as --eval/) })
    for (const command of ['eval', 'compare', 'prune', 'distill']) {
      const { stdout } = await sparsegpt([command, '--help'])
      expect(stdout).toMatch(/ --eval <wikitext2\|ptb\|c4\|FILE> /)
    }
    const without = await sparsegpt(['compare', model, '--windows', '2'])
    expect(without).toMatchObject({ code: 2, stderr: expect.stringMatching(/--windows: .*give --eval too/) })
  })

  test('prune measures the model before and after, on as many windows as are asked for', async () => {
    const run = await sparsegpt(job('measured', '--eval', text, '--windows', '3', '--json'))
    const report = JSON.parse(run.stdout) as Record<string, number>
    for (const [path, perplexity] of [
      [model, report['perplexityBefore']],
      [join(parent, 'measured'), report['perplexity']],
    ] as const) {
      const args = ['eval', path, '--eval', text, '--seqlen', '32', '--windows', '3', '--json']
      const evaluated = JSON.parse((await sparsegpt(args)).stdout) as object
      expect(evaluated).toMatchObject({ perplexity, windows: 3 })
    }
    const people = await sparsegpt(job('people', '--eval', text, '--windows', '3'))
    expect(people.stdout).toMatch(/\nperplexity [\d.]+ pruned, [\d.]+ before: [\d.]+ times as high\n$/)
    const idle = await sparsegpt(job('idle', '--windows', '3'))
    expect(idle).toMatchObject({ code: 2, stderr: expect.stringMatching(/--windows: .*give --eval too/) })
  })
})

describe('what is said on stderr', () => {
  test('--quiet: nothing; --verbose: the device and every layer; errors with where they come from', async () => {
    expect(await sparsegpt(job('quiet', '--quiet'))).toMatchObject({ code: 0, stderr: '' })
    const verbose = await sparsegpt(job('verbose', '--verbose'))
    expect(verbose.stderr).toMatch(/model on cpu \(.+\), in float32\n/)
    const layers = verbose.stderr.match(
      /^model\.layers\.\d\.\S+ \[\d+, \d+\]: 50\.00 % zeros, relative output error 0\./gm,
    )
    expect(layers).toHaveLength(14)
    const missing = ['eval', model, '--eval', join(parent, 'nothing.txt')]
    expect((await sparsegpt(missing)).stderr).not.toMatch(/\n {4}at /)
    expect((await sparsegpt([...missing, '--verbose'])).stderr).toMatch(/\[FILE_NOT_FOUND\]\n.*\n {4}at /s)
    expect(await sparsegpt(job('both', '--quiet', '--verbose'))).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/--quiet and --verbose contradict/),
    })
  })

  test('on a terminal the next steps stand at the end, without colours, and not with --quiet or --json', () => {
    const { code, output } = onTerminal(job('terminal'))
    expect(code).toBe(0)
    expect(output).toContain(`sparsegpt eval ${join(parent, 'terminal')} --eval wikitext2`)
    // eslint-disable-next-line no-control-regex
    expect(output).not.toMatch(/\x1b\[[\d;]*m/)
    for (const flag of ['--quiet', '--json'])
      expect(onTerminal(job(`terminal${flag}`, flag)).output).not.toContain('sparsegpt eval')
  })

  test('Ctrl-C ends with 130, the bar and ^C gone and the cursor shown', async () => {
    const long = join(parent, 'long.txt')
    await writeFile(long, asText(randomTokens(3000)))
    const args = ['prune', model, '--out', join(parent, 'stopped'), '--calibration', long]
    const { code, output } = onTerminal([...args, '--samples', '20000', '--threads', '1'], 'block 1/2')
    expect(code).toBe(130)
    const end = output.slice(output.lastIndexOf('\r\x1b[K') + 4)
    expect(end).toMatch(
      /^sparsegpt: stopping \(again to stop at once\)\r\nsparsegpt: stopped.*\[ABORTED\]\r\n$/s,
    )
    expect(end).not.toContain('█')
    expect(output.lastIndexOf('\x1b[?25h')).toBeGreaterThan(output.lastIndexOf('\x1b[?25l'))
    expect(existsSync(join(parent, 'stopped'))).toBe(false)
  })
})

test('--sample lets the pruned model continue a text', async () => {
  const { stdout } = await sparsegpt(job('sampled', '--sample', 'w1 w2', '--json'))
  const { sample } = JSON.parse(stdout) as { sample: { prompt: string; text: string } }
  const generated = ['generate', join(parent, 'sampled'), '--prompt', 'w1 w2', '--max-tokens', '64', '--json']
  const { text: expected } = JSON.parse((await sparsegpt(generated)).stdout) as { text: string }
  expect(sample).toEqual({ prompt: 'w1 w2', text: expected })
  expect((await sparsegpt(job('sampled', '--force', '--sample', 'w1 w2'))).stdout).toContain(
    `sample: w1 w2${expected}`,
  )
})

test('--sample of a model without a tokenizer is refused before it is pruned', async () => {
  const mute = await writeTinyModel(join(parent, 'mute'))
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) await rm(join(mute, name), { force: true })
  const out = join(parent, 'from-mute')
  const run = ['prune', mute, '--out', out, '--method', 'magnitude', '--sample', 'w1']
  for (const args of [run, [...run, '--dry-run']])
    expect(await sparsegpt(args)).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/mute.tokenizer\.json/),
    })
  expect(existsSync(out)).toBe(false)
})

describe('--dry-run', () => {
  test('plans the job, checks what it reads, and writes nothing', async () => {
    const before = readdirSync(parent)
    const saved = join(parent, 'saved.safetensors')
    const run = await sparsegpt(job('dry', '--dry-run', '--save-tokens', saved, '--eval', text))
    expect(run).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/peak memory.*time at.*8 calibration/s),
    })
    const { plan, windows } = JSON.parse((await sparsegpt(job('dry', '--dry-run', '--json'))).stdout)
    expect(windows).toBe(8)
    expect(plan).toMatchObject({ blocks: 2, seconds: { total: expect.any(Number) } })
    expect(readdirSync(parent)).toEqual(before)
  })

  test.each<[string, string[], RegExp]>([
    ['an output folder that exists', ['--out', 'TAKEN'], /taken exists.*OUTPUT_EXISTS/s],
    ['the source as output', ['--out', 'MODEL', '--force'], /folder of the source model/],
    ['a missing evaluation text', ['--eval', 'MISSING'], /missing does not exist/],
    ['a missing calibration text', ['--calibration', 'MISSING'], /missing does not exist/],
    ['a short calibration text', ['--calibration', 'SHORT'], /2 tokens.*INVALID_TEXT/s],
    ['a short evaluation text', ['--eval', 'SHORT'], /--eval: .*short\.txt: .* 2 tokens.*INVALID_TEXT/s],
    [
      'a file for tokens in no folder',
      ['--save-tokens', 'NOWHERE'],
      /write .*x\.safetensors: .*WRITE_FAILED/s,
    ],
    ['a weight that is none', ['--calibration', 'NEGATIVE'], /--calibration: .*"-1" is no weight.*=3 \[/],
    ['a dampening beyond all', ['--dampening', '1e400'], /--dampening: .*finite|--dampening: .*Infinity/],
    ['a mask without masks', ['--mask', 'MASK'], /mask\.safetensors/],
    ['another dense model', ['--target', 'dense', '--dense', 'GPT2'], /--dense: /],
    ['too little memory', ['--memory', '10MB'], /memory allows 10\.00 MB/],
    ['a form that the weights have none for', ['--encoding', 'compressed-tensors'], /bits 4 or 8/],
  ])('refuses %s', async (_, flags, message) => {
    await mkdir(join(parent, 'taken'), { recursive: true })
    await writeFile(join(parent, 'short.txt'), 'w1 w2')
    await writeSafetensors(join(parent, 'mask.safetensors'), [])
    await writeTinyModel(join(parent, 'gpt2'), 'gpt2')
    const paths: Record<string, string> = { MODEL: model, TAKEN: join(parent, 'taken') }
    Object.assign(paths, { MISSING: join(parent, 'missing'), SHORT: join(parent, 'short.txt') })
    Object.assign(paths, { MASK: join(parent, 'mask.safetensors'), GPT2: join(parent, 'gpt2') })
    Object.assign(paths, { NOWHERE: join(parent, 'no', 'x.safetensors'), NEGATIVE: `${text}=-1` })
    const replaced = flags.map((flag) => paths[flag] ?? flag)
    const usual = flags.includes('--calibration') ? [] : ['--calibration', text]
    const out = flags.includes('--out') ? [] : ['--out', join(parent, 'dry')]
    const before = readdirSync(parent)
    const run = await sparsegpt(['prune', model, ...out, ...usual, ...windows, '--dry-run', ...replaced])
    expect(run).toMatchObject({ stdout: '', stderr: expect.stringMatching(message) })
    expect(run.code).toBeGreaterThan(0)
    expect(readdirSync(parent)).toEqual(before)
  })
})

describe('the configuration file', () => {
  const config = async (name: string, contents: unknown) => {
    const file = join(parent, name)
    await writeFile(file, typeof contents === 'string' ? contents : JSON.stringify(contents))
    return file
  }
  const run = (file: string, ...flags: string[]) =>
    sparsegpt(['prune', model, '--config', file, '--out', join(parent, 'configured'), '--force', ...flags])

  test('gives options that are not typed; flags go first', async () => {
    const file = await config('config.json', {
      ...{ threads: 1, seqlen: 32, prompt: 'of generate', method: 'wanda' },
      prune: { method: 'magnitude', calibration: ['nowhere.txt'], sparsity: 0.25, json: true, samples: 8 },
    })
    const report = JSON.parse((await run(file, '--calibration', text)).stdout) as object
    expect(report).toMatchObject({ method: 'magnitude', sparsity: { target: 0.25 } })
    const typed = await run(file, '--calibration', text, '--pattern=2:4', '--method', 'wanda')
    expect(JSON.parse(typed.stdout)).toMatchObject({ method: 'wanda', sparsity: { target: 0.5 } })
  })

  test('may be a module, which is run only when it is named', async () => {
    const file = await config(
      'config.mjs',
      `export default { prune: { calibration: ${JSON.stringify(text)}, samples: 2 * 4, seqlen: 32, method: 'magnitude' } }`,
    )
    expect((await run(file)).stdout).toMatch(/\(magnitude\)/)
  })

  test('of the working directory is read where no other is named', async () => {
    const folder = join(parent, 'working')
    await mkdir(folder)
    await writeFile(join(folder, 'sparsegpt.config.json'), '{"prune": {"method": "magnitude", "json": true}}')
    const args = [program, 'prune', model, '--out', join(folder, 'out')]
    const { stdout } = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' })
    expect(JSON.parse(stdout)).toMatchObject({ method: 'magnitude' })
    const repeated = [
      '--recipe',
      join(folder, 'out', 'sparsegpt-report.json'),
      '--out',
      join(folder, 'again'),
    ]
    await writeFile(join(folder, 'sparsegpt.config.json'), '{"prune": {"sparsity": 0.25}}')
    const again = spawnSync(process.execPath, [program, 'prune', ...repeated, '--json'], { cwd: folder })
    expect(JSON.parse(String(again.stdout))).toMatchObject({ sparsity: { target: 0.5 } })
  })

  test('is named where one of its options is refused later', async () => {
    const file = await config('config.json', `\uFEFF${JSON.stringify({ prune: { sparsity: 2 } })}`)
    const refused = await run(file, '--calibration', text)
    expect(refused).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/--sparsity: .*\n.*config\.json/),
    })
    const other = await run(await config('config.yaml', 'prune:'), '--calibration', text)
    expect(other).toMatchObject({ code: 2, stderr: expect.stringMatching(/config\.yaml: .*\.json file/) })
  })

  test.each<[unknown, RegExp]>([
    ['{', /config\.json is not valid JSON/],
    [[], /must hold an object/],
    [{ sparsty: 0.5 }, /config\.json: sparsty: there is no such option/],
    [{ prune: { prompt: 'x' } }, /prune\.prompt: prune has no such option/],
    [{ prune: 3 }, /prune: must be an object/],
    [{ sparsity: 'half' }, /config\.json: sparsity: .*number.*given: "half"/],
    [{ method: 'obd' }, /config\.json: method: .*Allowed choices.*given: "obd"/],
    [{ json: 'yes' }, /config\.json: json: --json cannot be "yes"/],
    [{ sparsity: { of: 1 } }, /config\.json: sparsity: .*cannot be/],
    [{ include: ['q', 'k'] }, /config\.json: include: .*cannot be \["q","k"\]/],
  ])('%j is refused', async (contents, message) => {
    const refused = await run(await config('config.json', contents), '--calibration', text)
    expect(refused).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(message) })
  })

  test('one that is missing', async () => {
    const missing = await run(join(parent, 'no.json'))
    expect(missing).toMatchObject({ code: 1, stderr: expect.stringMatching(/no\.json does not exist/) })
  })
})

describe('completion', () => {
  const has = (shell: string) => spawnSync(shell, ['--version']).status === 0
  const script = async (shell: string) => {
    const { stdout } = await sparsegpt(['completion', shell])
    const file = join(parent, `completion.${shell}`)
    await writeFile(file, stdout)
    return file
  }
  const lines: [string[], string[]][] = [
    [['comp'], ['compare', 'completion']],
    [['prune', 'm', '--spar'], ['--sparsity']],
    [
      ['prune', 'm', '--method', ''],
      ['admm', 'magnitude', 'sparsegpt', 'wanda'],
    ],
    [
      ['bench', ''],
      ['decode', 'gemm', 'solver', 'forward'],
    ],
  ]

  test.each(lines)('bash: %j', async (words, expected) => {
    const list = ['sparsegpt', ...words].map((word) => `'${word}'`).join(' ')
    const line = `. ${await script('bash')}; COMP_WORDS=(${list}); COMP_CWORD=${words.length}; _sparsegpt; echo "\${COMPREPLY[@]}"`
    const { stdout } = spawnSync('bash', ['-c', line], { encoding: 'utf8' })
    expect(stdout.trim().split(' ')).toEqual(expected)
  })

  if (!has('fish')) console.warn('SKIPPED: completion in fish, which is not installed')
  ;(has('fish') ? test : test.skip).each(lines)('fish: %j', async (words, expected) => {
    const line = `source ${await script('fish')}; complete -C "sparsegpt ${words.join(' ')}"`
    const { stdout } = spawnSync('fish', ['-c', line], { encoding: 'utf8' })
    const found = stdout.split('\n').map((each) => each.split('\t')[0]!)
    expect(found).toEqual(expect.arrayContaining(expected))
  })

  if (!has('zsh')) console.warn('SKIPPED: completion in zsh, which is not installed')
  ;(has('zsh') ? test : test.skip)('zsh: the script is one', async () => {
    const load = `autoload -U compinit; compinit -u -D; . ${await script('zsh')}; echo $_comps[sparsegpt]`
    const { stdout, stderr } = spawnSync('zsh', ['-f', '-c', load], { encoding: 'utf8' })
    expect({ stdout, stderr }).toEqual({ stdout: '_sparsegpt\n', stderr: '' })
  })

  test('another shell is refused', async () => {
    const run = await sparsegpt(['completion', 'tcsh'])
    expect(run).toMatchObject({ code: 2, stderr: expect.stringMatching(/bash, zsh, fish/) })
  })
})

test('inspect shows kinds of layers first, why the model has fewer zeros, and tensors in the order of layers', async () => {
  await sparsegpt(job('inspected'))
  const out = join(parent, 'inspected')
  const { kinds, tensors, sparsity } = JSON.parse((await sparsegpt(['inspect', out, '--json'])).stdout)
  const linear = [...['q', 'k', 'v', 'o'].map((name) => `self_attn.${name}_proj`)]
  linear.push(...['gate', 'up', 'down'].map((name) => `mlp.${name}_proj`))
  expect(kinds.map(({ kind }: { kind: string }) => kind)).toEqual([
    'model.embed_tokens',
    'vectors',
    ...linear,
  ])
  for (const kind of kinds.slice(2)) expect(kind).toMatchObject({ linear: true, tensors: 2, sparsity: 0.5 })
  expect(kinds[0]).toMatchObject({ linear: false, tensors: 1, weights: 32 * 24 })
  const names: string[] = tensors.map(({ name }: { name: string }) => name)
  expect(names[0]).toBe('model.embed_tokens.weight')
  expect(names.at(-1)).toBe('model.norm.weight')
  const inFirst = names.filter((name) => name.includes('layers.0.') && name.includes('_proj'))
  expect(inFirst).toEqual(linear.map((name) => `model.layers.0.${name}.weight`))
  expect(names.indexOf('model.layers.1.self_attn.q_proj.weight')).toBeGreaterThan(
    names.indexOf('model.layers.0.mlp.down_proj.weight'),
  )
  const { stdout } = await sparsegpt(['inspect', out])
  expect(stdout.indexOf('mlp.up_proj ')).toBeLessThan(
    stdout.indexOf('model.layers.0.self_attn.q_proj.weight'),
  )
  expect(stdout).toMatch(
    /50\.00 % of the weights of the blocks' linear layers are zero\. These are 9\d\.\d\d %/,
  )
  expect(stdout).toContain(`${(sparsity * 100).toFixed(2)} % of all weights are zero`)
})

describe('plan', () => {
  test('tells the time at measured rates and the memory that this machine has', async () => {
    const { stdout } = await sparsegpt(['plan', model, ...windows])
    expect(stdout).toMatch(/peak memory.*\n.* available on this machine .*GB/)
    expect(stdout).toMatch(/ time at this machine's measured rates.* \d+ s /)
    const { memory, ...rest } = JSON.parse((await sparsegpt(['plan', model, '--no-time', '--json'])).stdout)
    expect(memory.available).toBeGreaterThan(memory.peak)
    expect(rest).not.toHaveProperty('seconds')
  })

  test.each([
    [['--min-block', '7'], /^sparsegpt: plan: minBlock 7/],
    [['--pattern', '5:7'], /^sparsegpt: plan: --pattern: .*24 columns/],
    [['--include', 'nothing'], /^sparsegpt: plan: include and exclude/],
  ])('says that errors are its own: %j', async (flags, message) => {
    const run = await sparsegpt(['plan', model, ...flags])
    expect(run).toMatchObject({ code: 2, stderr: expect.stringMatching(message) })
  })
})
