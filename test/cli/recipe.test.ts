import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'
import { sparsegpt } from './run.js'

test('prune --recipe repeats a job, what is given beside it wins, and --eval is in the report', async () => {
  const parent = await temporaryFolder()
  const model = await writeTinyModel(join(parent, 'model'))
  const text = join(parent, 'text.txt')
  await writeFile(text, asText(randomTokens(600)))
  const out = (name: string) => ['--out', join(parent, name)]
  const file = (name: string, of: string) => readFile(join(parent, name, of))
  const calibration = ['--calibration', text, '--samples', '8', '--seqlen', '32']
  const first = ['prune', model, ...out('a'), ...calibration, '--pattern', '2:4', '--eval', text, '--json']
  const measured = JSON.parse((await sparsegpt(first)).stdout)
  const json = JSON.parse(String(await file('a', 'sparsegpt-report.json')))
  expect(json.evaluation).toEqual({
    text,
    windows: 18,
    sequenceLength: 32,
    before: measured.perplexityBefore,
    after: measured.perplexity,
  })
  expect(String(await file('a', 'sparsegpt-report.html'))).toContain('>Perplexity</h2>')
  expect(String(await file('a', 'README.md'))).toContain(
    `| perplexity after | ${measured.perplexity.toFixed(3)} |`,
  )

  const recipe = ['prune', '--recipe', join(parent, 'a', 'sparsegpt-report.json')]
  expect(await sparsegpt([...recipe, ...out('b')])).toMatchObject({ code: 0 })
  expect((await file('a', 'model.safetensors')).equals(await file('b', 'model.safetensors'))).toBe(true)

  const other = await sparsegpt([...recipe, ...out('c'), '--sparsity', '0.25', '--samples', '4', '--json'])
  expect(JSON.parse(other.stdout)).toMatchObject({ model, sparsity: { target: 0.25 } })
  const { options } = JSON.parse(String(await file('c', 'sparsegpt-report.json')))
  expect(options.given).toMatchObject({ sparsity: 0.25, calibration: { file: text, samples: 4 } })
  expect(options.given).not.toHaveProperty('pattern')

  const damaged = { ...json, inputs: { ...json.inputs, model: '0'.repeat(32) } }
  const changed = async (report: object) => {
    await writeFile(join(parent, 'changed.json'), JSON.stringify(report))
    return sparsegpt(['prune', '--recipe', join(parent, 'changed.json'), ...out('e'), '--dry-run'])
  }
  expect(await changed(damaged)).toMatchObject({ code: 2, stderr: expect.stringMatching(/the model is not/) })
  // Names of a file from elsewhere do not clear the screen.
  expect((await changed({ ...json, model: '\u001b[2Jmodel' })).stderr).toMatch(
    /\\u001b\[2Jmodel does not exist/,
  )
  expect((await changed({ ...json, model: 'model\u009b2J' })).stderr).toMatch(/model\\u009b2J does not exist/)

  expect(await sparsegpt(['prune', ...out('d')])).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/give <model>, or --recipe/),
  })
})

test('the report says it when the evaluation behind the job fails', async () => {
  const parent = await temporaryFolder()
  const model = await writeTinyModel(join(parent, 'model'), 'llama', (name, values) => {
    if (name === 'model.norm.weight') values.fill(NaN)
  })
  const text = join(parent, 'text.txt')
  await writeFile(text, asText(randomTokens(600)))
  const out = join(parent, 'out')
  const options = ['--calibration', text, '--samples', '4', '--seqlen', '32', '--eval', text]
  expect(await sparsegpt(['prune', model, '--out', out, ...options])).toMatchObject({ code: 1 })
  const json = JSON.parse(await readFile(join(out, 'sparsegpt-report.json'), 'utf8'))
  expect(json).toMatchObject({ evaluation: { text, after: null }, result: { sparsity: { target: 0.5 } } })
})
