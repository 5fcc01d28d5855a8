import { appendFile, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { distill, loadModel, readRecipe } from '../../src/index.js'
import { prune, type PruneOptions } from '../loose-options.js'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'

let parent: string
let source: string
let text: string
beforeAll(async () => {
  parent = await temporaryFolder()
  source = await writeTinyModel(join(parent, 'model'))
  text = join(parent, 'text.txt')
  await writeFile(text, asText(randomTokens(600)))
})

const calibration = () => ({ file: text, samples: 8, sequenceLength: 32 })

async function pruned(name: string, options: PruneOptions, model = source) {
  const loaded = await loadModel(model)
  try {
    const out = join(parent, name)
    return { out, report: await prune(loaded, { calibration: calibration(), ...options, out }) }
  } finally {
    await loaded.dispose()
  }
}

const read = (folder: string, name: string) => readFile(join(folder, name), 'utf8')
const weights = (folder: string) => readFile(join(folder, 'model.safetensors'))
const reportOf = async (folder: string) => JSON.parse(await read(folder, 'sparsegpt-report.json'))

describe('the report of a pruned model', () => {
  test('has options as given and as taken, versions, hashes, layers, curves and pictures', async () => {
    const { out, report } = await pruned('good', { quality: 'good', include: /q_proj|down/i })
    const json = await reportOf(out)
    expect(json).toMatchObject({
      format: 1,
      job: 'prune',
      model: source,
      load: { device: 'cpu', dtype: 'float32' },
      versions: { sparsegpt: expect.any(String), node: process.version, device: expect.any(String) },
      inputs: { model: expect.stringMatching(/^[0-9a-f]{32}$/), calibration: expect.any(String) },
    })
    expect(json.options.given).toEqual({
      quality: 'good',
      calibration: calibration(),
      include: { source: 'q_proj|down', flags: 'i' },
      out,
    })
    expect(json.options.resolved).toMatchObject({ method: 'sparsegpt', sequential: 'layer', blockSize: 128 })
    expect(json.result).toEqual(JSON.parse(JSON.stringify(report)))
    const { reconstruction } = json.result.layers[0]
    expect(reconstruction.curve).toHaveLength(2)
    expect(reconstruction.curve[0]).toBe(reconstruction.heldOut.before)
    expect(json.pictures.map(({ name }: { name: string }) => name)).toEqual(
      report.layers.map(({ name }) => name),
    )
    const [{ density, histogram, sampled }] = json.pictures
    const shares = [...Buffer.from(density.bytes, 'base64')]
    expect(shares).toHaveLength(24 * 24)
    expect(shares.filter((share) => share === 255)).toHaveLength(288)
    const count = (bins: number[]) => bins.reduce((a, b) => a + b, 0)
    expect([sampled, count(histogram.before), count(histogram.after)]).toEqual([576, 576, 288])
  })

  test('draws the matrices of GPT-2 upright', async () => {
    const model = await writeTinyModel(join(parent, 'gpt2'), 'gpt2')
    const { out } = await pruned('upright', { pattern: '2:4', include: 'c_fc' }, model)
    const [{ corner, rows, columns }] = (await reportOf(out)).pictures
    expect([rows, columns, corner.rows, corner.columns]).toEqual([40, 24, 40, 24])
    const bytes = [...Buffer.from(corner.bytes, 'base64')]
    // Two of every four neighbours in a row are pruned.
    for (let at = 0; at < bytes.length; at += 4)
      expect(bytes.slice(at, at + 4).filter((byte) => byte === 255)).toHaveLength(2)
  })

  test('of a distillation has the losses', async () => {
    const { out } = await pruned('to-distill', {})
    const model = await loadModel(out)
    const trained = join(parent, 'distilled')
    await distill(model, { dense: source, calibration: calibration(), out: trained })
    await model.dispose()
    const json = await reportOf(trained)
    expect(json).toMatchObject({ job: 'distill', inputs: { dense: expect.any(String) } })
    expect(json.result.losses.training.length).toBeGreaterThan(0)
    expect(await read(trained, 'sparsegpt-report.html')).toContain('nats per token')
    await expect(readRecipe(join(trained, 'sparsegpt-report.json'))).rejects.toMatchObject({
      code: 'INVALID_OPTION',
      message: expect.stringMatching(/field job: must be "prune"/),
    })
  })
})

describe('a recipe', () => {
  let out: string
  let file: string
  beforeAll(async () => {
    ;({ out } = await pruned('first', { method: 'wanda', sparsity: 0.6, exclude: /K_PROJ/i }))
    file = join(out, 'sparsegpt-report.json')
  })

  test('repeats its job to the bit', async () => {
    const recipe = await readRecipe(file)
    expect(recipe.model).toBe(source)
    const model = await loadModel(recipe.model, recipe.load)
    const again = join(parent, 'again')
    await prune(model, { ...recipe.options, out: again })
    await model.dispose()
    expect((await weights(again)).equals(await weights(out))).toBe(true)
  })

  test.each([
    ['text', 'calibration text', () => appendFile(text, ` ${asText(randomTokens(4000, 5))}`)],
    ['model', 'the model', () => appendFile(join(source, 'config.json'), ' ').then(() => changeConfig())],
  ])('refuses another %s than its own', async (_, words, change) => {
    const [before, config] = await Promise.all([readFile(text), read(source, 'config.json')])
    try {
      await change()
      const { options } = await readRecipe(file)
      const again = pruned('changed', options)
      await expect(again).rejects.toMatchObject({
        code: 'INVALID_OPTION',
        message: expect.stringContaining(words),
      })
      // Without the hash it is taken as it is.
      const { inputs: __, ...free } = options
      expect((await pruned('taken', { ...free, force: true })).report.method).toBe('wanda')
    } finally {
      await Promise.all([writeFile(text, before), writeFile(join(source, 'config.json'), config)])
    }
  })

  const changeConfig = async () => {
    const path = join(source, 'config.json')
    await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), note: 'changed' }))
  }

  test.each([
    ['no JSON', '{', /a report must be JSON/],
    ['another format', '{"format": 2}', /field format: must be 1/],
    ['options that are no object', { options: { given: 5 } }, /field options\.given/],
    ['a hash that is none', { inputs: { model: '../x' } }, /field inputs\.model: must be a hash/],
    ['a bad expression', { options: { given: { include: { source: '(', flags: '' } } } }, /not a regular/],
  ])('with %s is refused', async (name, change, message) => {
    const path = join(parent, `recipe-${name}.json`)
    const whole = JSON.parse(await readFile(file, 'utf8'))
    await writeFile(path, typeof change === 'string' ? change : JSON.stringify({ ...whole, ...change }))
    await expect(readRecipe(path)).rejects.toMatchObject({
      code: 'INVALID_OPTION',
      message: expect.stringMatching(message),
    })
  })

  test('says what was handed over in memory', async () => {
    const { out: folder } = await pruned('memory', { calibration: { tokens: randomTokens(600), samples: 4 } })
    const { unrepeatable, options } = await readRecipe(join(folder, 'sparsegpt-report.json'))
    expect(unrepeatable).toMatch(/in memory \(tokens\)/)
    expect(options.calibration).toEqual({ samples: 4 })
  })
})

describe('the page', () => {
  test('never reads names as HTML, and asks for nothing from elsewhere', async () => {
    const hostile = join(parent, `<img src=x onerror=alert(1)>&"'`)
    await writeTinyModel(hostile)
    const { out } = await pruned('hostile', {}, hostile)
    const page = await read(out, 'sparsegpt-report.html')
    expect(page).not.toContain('<img')
    expect(page).toContain('&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#39;')
    expect(page).not.toMatch(/(src|href)=["']?https?:/)
    expect(page).toContain('default-src &#39;none&#39;')
  })
})

describe('the model card', () => {
  const own = '---\nlicense: mit # as it was\ntags:\n  - llama\n---\n# Tiny\n\nWhat it is.\n'

  test('adds tags and a section, and changes it only when the model is pruned again', async () => {
    const model = await writeTinyModel(join(parent, 'with-card'))
    await writeFile(join(model, 'README.md'), own)
    const { out } = await pruned('card', { pattern: '2:4' }, model)
    const card = await read(out, 'README.md')
    expect(card).toMatch(
      /^---\nlicense: mit # as it was\ntags:\n {2}- llama\n {2}- sparse\n {2}- sparsegpt\n---\n# Tiny\n\nWhat it is\.\n\n<!--/,
    )
    expect(card).toMatch(
      /sparsegpt prune with-card --out DIR --pattern 2:4 --calibration text\.txt --samples 8/,
    )
    const again = await read((await pruned('card-again', { sparsity: 0.7 }, out)).out, 'README.md')
    expect(again.match(/## Sparsity/g)).toHaveLength(1)
    expect(again).toContain('69.97 %')
    expect(again.slice(0, again.indexOf('<!--'))).toBe(card.slice(0, card.indexOf('<!--')))
  })

  test.each([
    ['no YAML', '---\n{ : [\n---\nText\n'],
    ['a line in its place', '---\nnot a front matter\n---\nText\n'],
  ])('leaves a front matter that is %s', async (name, readme) => {
    const model = await writeTinyModel(join(parent, `card ${name}`))
    await writeFile(join(model, 'README.md'), readme)
    const { out } = await pruned(`out ${name}`, {}, model)
    expect((await read(out, 'README.md')).startsWith(`${readme}\n<!-- sparsegpt: begin -->`)).toBe(true)
  })

  test('keeps the ends of lines, and tags that are no list', async () => {
    const model = await writeTinyModel(join(parent, 'card with returns'))
    await writeFile(join(model, 'README.md'), '---\r\nlicense: mit\r\ntags: {a: b}\r\n---\r\n# Hi\r\n')
    const card = await read((await pruned('out with returns', {}, model)).out, 'README.md')
    expect(card).toMatch(/^---\r\nlicense: mit\r\ntags: \{ ?a: b ?\}\r\n---\r\n# Hi\r\n\r\n<!--/)
    expect(card.replaceAll('\r\n', '')).not.toContain('\n')
  })

  test('is made where there was none', async () => {
    await rm(join(source, 'README.md'), { force: true })
    const { out } = await pruned('new-card', {})
    expect(await read(out, 'README.md')).toMatch(/^---\ntags:\n {2}- sparse\n {2}- sparsegpt\n---\n\n<!--/)
  })
})
