import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { beforeAll, expect, test } from '@jest/globals'
import { writeScriptedModel } from '../generation/scripted-model.js'
import { temporaryFolder } from '../temporary.js'
import { program, sparsegpt } from './run.js'

let model: string
let plain: string
beforeAll(async () => {
  const parent = await temporaryFolder()
  model = join(parent, 'model')
  plain = join(parent, 'plain')
  const chat_template =
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] + ':' + m.content }}{% endfor %}{{ 'a' }}"
  const files = { 'tokenizer_config.json': { bos_token: '<bos>', chat_template } }
  await writeScriptedModel(model, 'u:haé中!<end>', {
    ...files,
    'generation_config.json': { eos_token_id: 1 },
  })
  await writeScriptedModel(plain, 'abc', { 'config.json': { max_position_embeddings: 10 } })
})

test('generate prints the text as it comes, and at the end how fast it was', async () => {
  expect(await sparsegpt(['generate', model, '--prompt', 'a'])).toEqual({
    code: 0,
    stdout: 'é中!\n',
    stderr: expect.stringMatching(
      /^prompt: 2 tokens, [\d.]+ per second; generated: 7 tokens \(ended\), [\d.]+ per second\n$/,
    ),
  })
  const sampled = [
    '--max-tokens',
    '4',
    '--temperature',
    '0.01',
    '--top-k',
    '3',
    '--top-p',
    '0.5',
    '--seed',
    '2',
  ]
  expect(await sparsegpt(['generate', plain, '--prompt', 'a', ...sampled])).toMatchObject({
    code: 0,
    stdout: 'bcab\n',
    stderr: expect.stringMatching(/4 tokens \(as many as allowed\)/),
  })
})

test('generate stops where nobody reads it', async () => {
  const endless = join(await temporaryFolder(), 'endless')
  await writeScriptedModel(endless, 'abc', { 'config.json': { max_position_embeddings: 5000 } })
  const args = ['generate', endless, '--prompt', 'a', '--max-tokens', '4000']
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  child.stdout.destroy()
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (part: string) => (stderr += part))
  expect(await once(child, 'close')).toEqual([0, null])
  // Else it would say how much it has generated.
  expect(stderr).toBe('')
})

test('generate --json prints one object', async () => {
  const { code, stdout, stderr } = await sparsegpt([
    ...['generate', model, '--prompt', 'h', '--stop', '中', '--stop', 'zz', '--json'],
  ])
  expect([code, stderr]).toEqual([0, ''])
  expect(stdout).toMatch(/^\{.*\}\n$/)
  expect(JSON.parse(stdout)).toEqual({
    text: 'aé',
    tokens: 6,
    tokenIds: expect.any(Array),
    promptTokens: 2,
    seconds: expect.any(Number),
    promptTokensPerSecond: expect.any(Number),
    tokensPerSecond: expect.any(Number),
    finishReason: 'stop',
  })
})

test('generate --chat writes the prompt out as a message', async () => {
  const { stdout } = await sparsegpt(['generate', model, '--prompt', 'h', '--chat', '--json'])
  // <bos> u : h a
  expect(JSON.parse(stdout)).toMatchObject({ text: 'é中!', promptTokens: 5 })
  expect(await sparsegpt(['generate', plain, '--prompt', 'a', '--chat'])).toMatchObject({
    code: 1,
    stdout: '',
    stderr: expect.stringMatching(/chat_template\.jinja does not exist.*\[FILE_NOT_FOUND\]\n$/),
  })
})

test.each([
  [[], /required option '--prompt <text>'/],
  [['--prompt', 'a', '--max-tokens', '0'], /generate: --max-tokens: .*given: 0/],
  [['--prompt', 'a', '--max-tokens', 'x'], /--max-tokens <n>' argument 'x' is invalid/],
  [['--prompt', 'abcabcabc'], /generate: --prompt: 10 tokens leave no room in the model's context of 10 /],
])('generate %j', async (flags, message) => {
  expect(await sparsegpt(['generate', plain, ...flags])).toEqual({
    code: 2,
    stdout: '',
    stderr: expect.stringMatching(message),
  })
})
