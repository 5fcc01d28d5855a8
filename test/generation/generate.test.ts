import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, type ErrorCode, type Model, type TextGeneration } from '../../src/index.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'
import { specials, writeScriptedModel } from './scripted-model.js'

async function piecesOf(stream: TextGeneration): Promise<string[]> {
  const pieces: string[] = []
  for await (const piece of stream) pieces.push(piece)
  return pieces
}

/** Runs `body` with a model that says `text` for ever. */
async function withScript(
  text: string,
  files: Record<string, unknown>,
  body: (model: Model, folder: string) => Promise<void>,
): Promise<void> {
  const folder = await temporaryFolder()
  await writeScriptedModel(folder, text, files)
  const model = await loadModel(folder, { device: 'cpu' })
  try {
    await body(model, folder)
  } finally {
    await model.dispose()
  }
}

describe('a text', () => {
  test('comes in pieces of whole characters, and as a result', async () => {
    await withScript('aé中😀b', {}, async (model) => {
      const stream = model.generate('b', { maxTokens: 11 })
      expect(await piecesOf(stream)).toEqual(['a', 'é', '中', '😀', 'b'])
      expect(await stream.result).toEqual({
        text: 'aé中😀b',
        tokens: 11,
        tokenIds: [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13],
        promptTokens: 2, // with <bos>
        seconds: expect.any(Number),
        promptTokensPerSecond: expect.any(Number),
        tokensPerSecond: expect.any(Number),
        finishReason: 'length',
      })
      // What has been read is not there again; the result is.
      expect(await piecesOf(stream)).toEqual([])
      // Without a reader, from token ids, without a post-processor; ended within a character.
      const ids = Int32Array.of(13)
      const generation = model.generate(ids, { maxTokens: 2 })
      ids[0] = 5
      const { text, promptTokens } = await generation.result
      expect([text, promptTokens]).toEqual(['a\ufffd', 1])
    })
  })

  test('ends before a stop string', async () => {
    await withScript('123a', {}, async (model) => {
      const cases: [string | string[], string, string][] = [
        ['a', '1', '23'],
        ['23', '1', ''],
        [['zz', '34', '31', 'a1'], '1', '23'],
        ['3a1', 'a', '12'],
      ]
      for (const [stop, prompt, expected] of cases) {
        const stream = model.generate(prompt, { stop, maxTokens: 20 })
        expect((await piecesOf(stream)).join('')).toBe(expected)
        expect(await stream.result).toMatchObject({ text: expected, finishReason: 'stop' })
      }
    })
  })

  test('ends at the tokens of generation_config.json, or where it is silent of config.json', async () => {
    const files = { 'config.json': { eos_token_id: 1 } }
    await withScript(`abc${specials[1]}de${specials[2]}`, files, async (model, folder) => {
      const cases: [unknown, string, number][] = [
        [undefined, 'abc', 4],
        [{ eos_token_id: null }, 'abc', 4],
        [{ eos_token_id: [99, 2] }, 'abcde', 7],
        [{ eos_token_id: 2 }, 'abcde', 7],
      ]
      for (const [contents, text, tokens] of cases) {
        if (contents) await writeFile(join(folder, 'generation_config.json'), JSON.stringify(contents))
        expect(await model.generate('').result).toMatchObject({ text, tokens, finishReason: 'stop' })
      }
    })
  })

  test('ends where the context does', async () => {
    await withScript('abc', { 'config.json': { max_position_embeddings: 10 } }, async (model) => {
      const { tokens, finishReason } = await model.generate('abc').result
      expect([tokens, finishReason]).toEqual([6, 'context'])
      const full = model.generate('abcabcabc').result
      await expectError(full, 'INVALID_OPTION', /option prompt: 10 tokens leave no room in .* of 10 tokens/)
    })
  })

  test('a seed gives the same text, another one another', async () => {
    const model = await loadModel(await writeTinyModel(await temporaryFolder()), { device: 'cpu' })
    const text = async (seed?: number) => {
      const options = { temperature: 1, maxTokens: 24, ...(seed !== undefined && { seed }) }
      return (await model.generate([1, 2], options).result).text
    }
    const first = await text(1)
    expect(await text(1)).toBe(first)
    expect(await text(2)).not.toBe(first)
    expect(await text()).toBe(await text(0))
    // Two at once do not disturb each other.
    expect(await Promise.all([text(1), text(1)])).toEqual([first, first])
    // Only the likeliest token.
    const greedy = await model.generate([1, 2], { maxTokens: 24 }).result
    const cut = await model.generate([1, 2], { maxTokens: 24, temperature: 5, topK: 1, seed: 3 }).result
    expect(cut.tokenIds).toEqual(greedy.tokenIds)
    await model.dispose()
  })
})

describe('is stopped', () => {
  let folder: string
  beforeAll(async () => {
    folder = await temporaryFolder()
    await writeScriptedModel(folder, 'abc', { 'config.json': { max_position_embeddings: 1e6 } })
  })
  const long = { maxTokens: 500_000 }

  test('by a signal', async () => {
    const model = await loadModel(folder, { device: 'cpu' })
    const controller = new AbortController()
    const stream = model.generate('a', { ...long, signal: controller.signal })
    let pieces = 0
    const reading = (async () => {
      for await (const _ of stream) if (++pieces === 3) controller.abort()
    })()
    await expectError(reading, 'ABORTED', /stopped by the signal/)
    expect(pieces).toBeGreaterThanOrEqual(3)
    await expectError(stream.result, 'ABORTED', /stopped by the signal/)
    const before = model.generate('a', { signal: AbortSignal.abort() })
    await expectError(piecesOf(before), 'ABORTED', /stopped by the signal/)
    await model.dispose()
  })

  test('by a reader who leaves the loop', async () => {
    const model = await loadModel(folder, { device: 'cpu' })
    const stream = model.generate('a', long)
    for await (const piece of stream) if (piece === 'c') break
    await expectError(stream.result, 'ABORTED', /read no further/)
    await expectError(piecesOf(stream), 'ABORTED', /read no further/)
    // The model is as it was.
    expect((await model.generate('a', { maxTokens: 2 }).result).text).toBe('bc')
    await model.dispose()
  })

  test('by the end of its model, also within the loop', async () => {
    const model = await loadModel(folder, { device: 'cpu' })
    const stream = model.generate('a', long)
    const reading = (async () => {
      for await (const _ of stream) await model.dispose()
    })()
    await expectError(reading, 'ABORTED', /disposed of/)
    expect(() => model.generate('a')).toThrow(/generate: the model .* has been disposed of/)
  })
})

describe('what is refused', () => {
  let model: Model
  let folder: string
  beforeAll(async () => {
    folder = await writeTinyModel(await temporaryFolder())
    model = await loadModel(folder, { device: 'cpu' })
  })
  afterAll(() => model.dispose())

  test.each<[unknown, unknown, RegExp]>([
    ['', {}, /option prompt: is empty/],
    [[], {}, /option prompt: is empty/],
    [[1, 32], {}, /token id 32 at position 1 is not an integer in \[0, 32\)/],
    [randomTokens(64), {}, /option prompt: 64 tokens leave no room in the model's context of 64 tokens/],
    [7, {}, /option prompt: must be a text, a list of token ids, or \{ messages \}/],
    [{ messages: [] }, {}, /option messages: must have at least one/],
    [{ messages: [{ role: 'user' }] }, {}, /option messages\.0\.content: /],
    [[1], { maxTokens: 0 }, /option maxTokens: .*given: 0/],
    [[1], { maxTokens: 1.5 }, /option maxTokens: /],
    [[1], { temperature: -1 }, /option temperature: .*given: -1/],
    [[1], { temperature: NaN }, /option temperature: /],
    [[1], { topK: 0 }, /option topK: /],
    [[1], { topP: 0 }, /option topP: .*given: 0/],
    [[1], { topP: 1.1 }, /option topP: /],
    [[1], { seed: 0.5 }, /option seed: /],
    [[1], { stop: '' }, /option stop: /],
    [[1], { stop: ['a', 3] }, /option stop: must be a string of 1 to 1024 characters, or a list/],
    [[1], { stop: [3] }, /option stop: must be a string of 1 to 1024 characters, or a list/],
    [[1], { maxtokens: 3 }, /unknown option maxtokens/],
  ])('%j, %j', async (prompt, options, message) => {
    const stream = model.generate(prompt as never, options as never)
    await expectError(piecesOf(stream), 'INVALID_OPTION', message)
    await expectError(stream.result, 'INVALID_OPTION', message)
  })

  test.each([
    [
      'generation_config.json',
      '{"eos_token_id": "x"}',
      /generation_config\.json: eos_token_id must be a token id/,
    ],
    ['generation_config.json', '{"eos_token_id": [1.5]}', /eos_token_id.* must be a token id/],
    ['generation_config.json', '[', /generation_config\.json is not valid JSON/],
    ['generation_config.json', 'null', /generation_config\.json: it must be/],
  ])('%s with %s', async (file, contents, message) => {
    await writeFile(join(folder, file), contents)
    await expectError(model.generate([1]).result, 'INVALID_CHECKPOINT', message)
    await writeFile(join(folder, file), '{}')
    await model.generate([1], { maxTokens: 1 }).result
  })

  test('weights that are not finite', async () => {
    const spoilt = await writeTinyModel(await temporaryFolder(), 'llama', (name, values) => {
      if (name.endsWith('o_proj.weight')) values[0] = NaN
    })
    const broken = await loadModel(spoilt, { device: 'cpu' })
    await expectError(broken.generate([1]).result, 'NON_FINITE', /not finite/)
    await broken.dispose()
  })
})

describe('a conversation', () => {
  const template =
    "{{ bos_token }}{% for message in messages %}{{ message.role + '|' + message.content + '\n' }}{% endfor %}" +
    "{% if add_generation_prompt %}{{ 'a|' }}{% endif %}"
  const tokens = { bos_token: '<bos>', eos_token: { content: '<end>' } }
  const settings = (chat_template: unknown) => ({
    'tokenizer_config.json': { ...tokens, chat_template },
  })
  const text = 'u|h\na'
  const messages = [{ role: 'u', content: 'h' }]

  let model: Model
  let folder: string
  beforeAll(async () => {
    folder = await temporaryFolder()
    await writeScriptedModel(folder, text)
    model = await loadModel(folder, { device: 'cpu' })
  })
  afterAll(() => model.dispose())
  /** Gives the model's folder these files and no other settings. */
  const use = async (files: Record<string, unknown>) => {
    for (const name of ['tokenizer_config.json', 'chat_template.jinja'])
      await rm(join(folder, name), { force: true })
    for (const [name, contents] of Object.entries(files))
      await writeFile(join(folder, name), typeof contents === 'string' ? contents : JSON.stringify(contents))
  }

  test.each<[string, Record<string, unknown>]>([
    ['tokenizer_config.json', settings(template)],
    [
      'a list in tokenizer_config.json',
      settings([
        { name: 'rag', template: '{{ 1 }}' },
        { name: 'default', template },
      ]),
    ],
    ['chat_template.jinja', { ...settings('{{ 1 }}'), 'chat_template.jinja': template }],
  ])('is written out by the template of %s', async (_, files) => {
    await use(files)
    const tokenizer = await model.tokenizer()
    // <bos> once, as the template has it.
    const ids = await tokenizer.encodeChat(messages)
    expect([...ids]).toEqual([0, ...(await tokenizer.encode('u|h\na|')).subarray(1)])
    const { text: said, promptTokens } = await model.generate({ messages }, { maxTokens: 3 }).result
    expect([said, promptTokens]).toEqual(['h\na', 7])
  })

  test.each<[string, Record<string, unknown>, ErrorCode, RegExp]>([
    [
      'no template',
      {},
      'FILE_NOT_FOUND',
      /chat_template\.jinja does not exist, and .*tokenizer_config\.json has no/,
    ],
    [
      'no default template',
      settings([{ name: 'rag', template }]),
      'FILE_NOT_FOUND',
      /has chat templates \(rag\), but none named default/,
    ],
    [
      'a damaged file',
      { 'tokenizer_config.json': '{' },
      'INVALID_CHECKPOINT',
      /tokenizer_config\.json is not valid JSON/,
    ],
    ['a number', settings(3), 'INVALID_CHECKPOINT', /tokenizer_config\.json: chat_template/],
    [
      'a damaged template',
      settings('{% if %}'),
      'INVALID_CHECKPOINT',
      /tokenizer_config\.json cannot be rendered/,
    ],
    [
      'one that refuses',
      settings("{{ raise_exception('roles must alternate') }}"),
      'INVALID_OPTION',
      /tokenizer_config\.json refuses the messages: roles must alternate/,
    ],
    [
      'one that makes nothing',
      settings('{{ messages[0].foo }}'),
      'INVALID_CHECKPOINT',
      /tokenizer_config\.json makes an empty text/,
    ],
    [
      'one that is too large',
      { 'chat_template.jinja': ' '.repeat(2 ** 20 + 1) },
      'INVALID_CHECKPOINT',
      /chat_template\.jinja has more than the 1048576 bytes/,
    ],
    [
      'one that makes too much',
      settings(
        "{% set n = namespace(x='12345678') %}{% for i in range(24) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
      ),
      'INVALID_CHECKPOINT',
      /cannot be rendered: it makes more than 16777216 characters/,
    ],
    [
      'one that takes too much memory',
      settings('{{ range(2000000000) | length }}'),
      'INVALID_CHECKPOINT',
      /cannot be rendered: it takes more than/,
    ],
  ])('%s', async (_, files, code, message) => {
    await use(files)
    await expectError(model.generate({ messages }).result, code, message)
    // The tokenizer works on.
    expect((await model.generate('u', { maxTokens: 1 }).result).text).toBe('|')
  })
})
