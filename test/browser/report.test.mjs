// The pages of reports in a headless Chromium: no message on the console, nothing asked for from elsewhere, both colour schemes, the
// keyboard, and names that look like HTML. `npm run test:report`; with SCREENSHOTS=DIR the pages are pictured there.

import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { distill, loadModel, prune, sensitivity, sweep } from '../../dist/index.js'
import { comparisonPage } from '../../dist/reporting/measurement-pages.js'
import { writeMeasurement } from '../../dist/reporting/measurement.js'
import { recordEvaluation } from '../../dist/reporting/write-report.js'

const source = new URL('../../models/sotu-3m', import.meta.url).pathname
const hostile = '<img src=x onerror=alert(1)></script><script>alert(2)</script>'
const tokens = Array.from({ length: 4000 }, (_, i) => (i * i) % 257)
const calibration = { tokens, samples: 8, sequenceLength: 32 }
const text = { tokens: tokens.slice(0, 640), sequenceLength: 32 }

let browser
let folder
before(async () => {
  // Makes the package bring the libraries that a bare system lacks.
  process.env.AWS_LAMBDA_JS_RUNTIME ??= 'nodejs20.x'
  const [{ default: chromium }, { default: puppeteer }] = await Promise.all([
    import('@sparticuz/chromium'),
    import('puppeteer-core'),
  ])
  const executablePath = process.env.CHROMIUM ?? (await chromium.executablePath())
  // Chromium takes a language from this that no formatter knows.
  const env = { ...process.env, LANG: 'C', LC_ALL: 'C' }
  browser = await puppeteer.launch({ executablePath, args: chromium.args, headless: 'shell', env })
  folder = await mkdtemp(join(tmpdir(), 'sparsegpt-report-'))
})
after(async () => {
  await browser?.close()
  if (folder) await rm(folder, { recursive: true, force: true })
})

/** Opens a page in a scheme, lets `body` look at it, and checks that all it did was quiet and at home. */
async function visit(file, scheme, body) {
  const page = await browser.newPage()
  const noise = []
  page.on('console', (message) => noise.push(`console: ${message.text()}`))
  page.on('pageerror', (error) => noise.push(`error: ${error.message}`))
  page.on('dialog', (dialog) => {
    noise.push(`dialog: ${dialog.message()}`)
    void dialog.dismiss()
  })
  page.on('request', (request) => {
    if (request.url() !== pathToFileURL(file).href) noise.push(`request: ${request.url()}`)
  })
  await page.setViewport({ width: 1100, height: 900 })
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
  await page.goto(pathToFileURL(file).href)
  try {
    return await body(page)
  } finally {
    assert.deepEqual(noise, [])
    await page.close()
  }
}

/** What a page shows, in both schemes. */
async function check(name, file, { charts, masks = 0 }) {
  const backgrounds = []
  for (const scheme of ['light', 'dark']) {
    await visit(file, scheme, async (page) => {
      const seen = await page.evaluate(() => ({
        charts: document.querySelectorAll('figure[data-chart] .uplot canvas').length,
        masks: document.querySelectorAll('canvas[data-mask]').length,
        // Every chart's and every mask's section has a table.
        bare: [...document.querySelectorAll('section:has(figure)')].filter(
          (one) => !one.querySelector('table'),
        ).length,
        unnamed: [...document.querySelectorAll('[role=group], [role=img], [role=region]')].filter(
          (one) => !one.getAttribute('aria-label'),
        ).length,
        headings: [...document.querySelectorAll('h1, h2')].map(({ tagName }) => tagName),
        width: document.documentElement.scrollWidth,
        background: getComputedStyle(document.body).backgroundColor,
        // Something is drawn in each chart.
        blank: [...document.querySelectorAll('figure canvas')].filter((canvas) => {
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
          return !data.some((value) => value !== 0)
        }).length,
      }))
      backgrounds.push(seen.background)
      assert.deepEqual(
        { charts: seen.charts, masks: seen.masks, bare: seen.bare, unnamed: seen.unnamed, blank: seen.blank },
        { charts, masks, bare: 0, unnamed: 0, blank: 0 },
      )
      assert.equal(seen.headings.filter((tag) => tag === 'H1').length, 1)
      assert.ok(seen.width <= 1100, `the page is ${seen.width} pixels wide`)
      const { SCREENSHOTS } = process.env
      if (SCREENSHOTS)
        await page.screenshot({ path: join(SCREENSHOTS, `${name}-${scheme}.png`), fullPage: true })
    })
  }
  assert.notEqual(backgrounds[0], backgrounds[1])
}

const pageOf = (name) => join(folder, name, 'sparsegpt-report.html')

test('of a pruned model', { timeout: 120_000 }, async () => {
  const model = await loadModel(source)
  const options = { calibration, pattern: '2:4', quality: 'good', maxBlock: 3 }
  const { layers } = await prune(model, { ...options, out: join(folder, 'pruned') })
  await model.dispose()
  const evaluation = { text: hostile, windows: 20, sequenceLength: 32, before: 21.5, after: 34.25 }
  await recordEvaluation(join(folder, 'pruned'), evaluation)
  await check('prune', pageOf('pruned'), { charts: 1 + 3 + 1 + 6, masks: 12 })

  await visit(pageOf('pruned'), 'light', async (page) => {
    // The name of the text is text.
    assert.ok((await page.evaluate(() => document.body.innerText)).includes(hostile))
    const figure = await page.$('section:has(h2) figure[data-chart="1"]')
    const plot = await figure.$('.plot')
    await plot.focus()
    await page.keyboard.press('ArrowRight')
    await page.keyboard.press('ArrowRight')
    const said = () => figure.$eval('output', (output) => output.textContent)
    assert.match(await said(), /^block 1: self_attn\.q_proj 50\.00 %/)
    // A series that is hidden by its button is not said.
    await page.keyboard.press('Tab')
    await page.keyboard.press('Enter')
    assert.equal(await figure.$eval('button', (button) => button.getAttribute('aria-pressed')), 'false')
    await plot.focus()
    await page.keyboard.press('End')
    assert.match(await said(), /^block 2: self_attn\.k_proj/)
    // The tables have what the charts have.
    const rows = await page.$$eval(
      'section',
      (sections) =>
        sections
          .find((section) => section.querySelector('h2').textContent === 'Sparsity by layer')
          .querySelectorAll('tbody tr').length,
    )
    assert.equal(rows, layers.length)
  })
})

test('with hostile names of layers', { timeout: 60_000 }, async () => {
  const file = join(folder, 'pruned', 'sparsegpt-report.json')
  const report = JSON.parse(await readFile(file, 'utf8'))
  for (const [i, layer] of report.result.layers.entries()) layer.name = `layers.${i}.${hostile}`
  for (const picture of report.pictures) picture.name = hostile
  report.model = hostile
  await writeFile(file, JSON.stringify(report))
  await recordEvaluation(join(folder, 'pruned'), report.evaluation)
  await visit(pageOf('pruned'), 'dark', async (page) => {
    const seen = await page.evaluate(() => [
      document.querySelectorAll('img').length,
      document.querySelectorAll('script').length,
      document.querySelectorAll('figure[data-chart] .uplot').length,
    ])
    assert.deepEqual(seen, [0, 3, 11])
  })
})

test('of a distillation', { timeout: 120_000 }, async () => {
  const model = await loadModel(join(folder, 'pruned'))
  await distill(model, { dense: source, calibration, out: join(folder, 'distilled') })
  await model.dispose()
  await check('distill', pageOf('distilled'), { charts: 1 + 1 + 6, masks: 12 })
})

test('of a comparison, a sweep and a sensitivity', { timeout: 120_000 }, async () => {
  // Generating text, which a comparison measures, takes long.
  const models = ['dense', 'pruned'].map((model, i) => ({
    ...{ model, sparsity: i / 2, bytes: 5e6, tokensPerSecond: 100 + i, perplexity: 21 + i },
  }))
  await writeMeasurement(join(folder, 'compared'), 'compare', {}, { models }, comparisonPage)
  await check('compare', pageOf('compared'), { charts: 4 })
  await sweep(source, {
    ...{ sparsity: [0.3, 0.5, 0.7], patterns: ['2:4', '4:8'], methods: ['wanda', 'magnitude'] },
    ...{ calibration, text, out: join(folder, 'swept') },
  })
  await check('sweep', pageOf('swept'), { charts: 2 })
  const model = await loadModel(source)
  await sensitivity(model, { calibration, out: join(folder, 'sensitive') })
  await model.dispose()
  await check('sensitivity', pageOf('sensitive'), { charts: 1 })
})
