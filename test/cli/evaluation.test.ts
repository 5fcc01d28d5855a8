import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'
import { sparsegpt } from './run.js'

let parent: string
let text: string
beforeAll(async () => {
  parent = await temporaryFolder()
  text = join(parent, 'text.txt')
  await writeFile(text, asText(randomTokens(600)))
})

const prune = (model: string, out: string, ...rest: string[]) =>
  sparsegpt([
    'prune',
    model,
    '--out',
    out,
    '--calibration',
    text,
    '--samples',
    '8',
    '--seqlen',
    '32',
    ...rest,
  ])

describe('a text that cannot be evaluated is refused before anything is pruned', () => {
  test.each([
    ['missing', undefined, 'FILE_NOT_FOUND'],
    ['short', asText(randomTokens(31)), 'INVALID_TEXT'],
  ])('%s', async (name, contents, code) => {
    const model = await writeTinyModel(join(parent, `model-${name}`))
    const out = join(parent, `out-${name}`)
    const file = join(parent, `${name}.txt`)
    if (contents !== undefined) await writeFile(file, contents)
    const run = await prune(model, out, '--eval', file)
    expect(run).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining(`[${code}]`) })
    expect(existsSync(out)).toBe(false)
  })
})

describe('an evaluation that fails leaves the report of the pruning', () => {
  // The final norm is looked at by the evaluation only.
  const spoilt = () =>
    writeTinyModel(join(parent, 'spoilt'), 'llama', (name, values) => {
      if (name === 'model.norm.weight') values.fill(NaN)
    })

  test.each([true, false])('with --json: %p', async (json) => {
    const out = join(parent, `out-spoilt-${json}`)
    const run = await prune(await spoilt(), out, '--eval', text, ...(json ? ['--json'] : []))
    expect(run).toMatchObject({ code: 1, stderr: expect.stringMatching(/window 0 .*\[NON_FINITE\]/) })
    expect(existsSync(join(out, 'model.safetensors'))).toBe(true)
    if (json) {
      const report = JSON.parse(run.stdout)
      expect(report).toMatchObject({ out, sparsity: { achieved: 0.5 } })
      expect(report).not.toHaveProperty('perplexity')
    } else {
      expect(run.stdout).toMatch(/14 layers pruned to 50\.\d\d % zeros/)
    }
  })
})
