import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, prune, type CalibrationOptions, type Model } from '../../src/index.js'
import { engineOf } from '../../src/sdk/model.js'
import {
  allWindows,
  calibrationSource,
  calibrationWindows,
  evaluationTokens,
  type CalibrationSource,
} from '../../src/text/source.js'
import { drawWindows } from '../../src/text/windows.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'

let [folder, model] = ['', undefined as unknown as Model]
beforeAll(async () => {
  folder = await writeTinyModel(await temporaryFolder())
  const template =
    '{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}'
  await writeFile(join(folder, 'chat_template.jinja'), template)
  model = await loadModel(folder, { device: 'cpu', threads: 1 })
})
afterAll(() => model.dispose())

const settings = { samples: 6, sequenceLength: 8, seed: 3 }
const windowsOf = async (source: CalibrationSource, options = settings) =>
  (await calibrationWindows(engineOf(model), calibrationSource.parse(source), options)).windows

const [text, other] = [randomTokens(200), randomTokens(200, 7)]
const drawn = (tokens: number[], samples = settings.samples) =>
  drawWindows(Int32Array.from(tokens), { ...settings, samples })

describe('a calibration source', () => {
  test('is a text, documents, or an iterable of them', async () => {
    const parts = [text.slice(0, 50), text.slice(50)].map(asText)
    async function* later() {
      yield* parts
    }
    for (const given of [asText(text), parts, later()])
      expect(await windowsOf({ text: given })).toEqual(drawn(text))
    await expectError(windowsOf({ text: ['w1', 5 as never] }), 'INVALID_OPTION', /text.*number/)
    const broken = async function* () {
      yield Promise.reject(new TypeError('no more'))
    }
    await expectError(windowsOf({ text: broken() }), 'INVALID_TEXT', /option text: .*failed: no more/)
    await expectError(
      prune(model, { calibration: { text: { [Symbol.iterator]: null } as never } }),
      'INVALID_OPTION',
      /text/,
    )
    await expectError(
      prune(model, { calibration: { text: 5 as never } }),
      'INVALID_OPTION',
      /calibration\.text: must be a text/,
    )
  })

  test('is conversations, written out by the chat template without the place of an answer', async () => {
    const conversations = [text.slice(0, 90), text.slice(90)].map((tokens) => [
      { role: 'user', content: asText(tokens.slice(0, 40)) },
      { role: 'assistant', content: asText(tokens.slice(40)) },
    ])
    expect(await windowsOf({ messages: conversations })).toEqual(drawn(text))
    const [one] = conversations
    expect(await windowsOf({ messages: one! })).toEqual(drawn(text.slice(0, 90)))
    const file = join(await temporaryFolder(), 'chat.jsonl')
    await writeFile(file, conversations.map((messages) => JSON.stringify({ messages })).join('\n'))
    expect(await windowsOf({ file, chat: true })).toEqual(drawn(text))
    const [first] = conversations
    const cyclic: Record<string, unknown> = { role: 'user', content: 'w1' }
    cyclic['self'] = cyclic
    for (const extra of [() => 1, 5n, cyclic])
      await expectError(
        prune(model, { calibration: { messages: [{ ...first![0]!, extra } as never] } }),
        'INVALID_OPTION',
        /./,
      )
    await writeFile(file, '{"messages": "hello"}')
    await expectError(windowsOf({ file, chat: true }), 'INVALID_TEXT', /line 1 .*"messages"/)
    await expectError(windowsOf({ file: 'a.txt', chat: true }), 'INVALID_OPTION', /option chat/)
  })

  test('is several, which share the windows by their weights', async () => {
    const sources = [{ tokens: text, weight: 2 }, { tokens: other }]
    const windows = await windowsOf({ sources })
    const [mine, theirs] = [drawn(text, 4), drawn(other, 2)]
    expect(windows).toHaveLength(6)
    for (const half of [windows.slice(0, 3), windows.slice(3)]) {
      const known = (window: Int32Array, of: Int32Array[]) => of.some((one) => one.join() === window.join())
      expect(half.filter((window) => known(window, mine))).toHaveLength(2)
      expect(half.filter((window) => known(window, theirs))).toHaveLength(1)
    }
    const all = await allWindows(engineOf(model), calibrationSource.parse({ sources }), settings)
    expect(all).toHaveLength(50)
    await expectError(
      windowsOf({ sources }, { ...settings, samples: 1 }),
      'INVALID_OPTION',
      /samples.*source 2/,
    )
  })

  test('is windows of any lengths, each a sequence by itself', async () => {
    const windows = [8, 5, 8, 3, 8, 5].map((length, i) => randomTokens(length, i + 1))
    expect(await windowsOf({ windows })).toEqual(windows.map((ids) => Int32Array.from(ids)))
    await expectError(windowsOf({ windows: [[]] }), 'INVALID_OPTION', /at least one/)
    await expectError(windowsOf({ windows: [[99]] }), 'INVALID_OPTION', /token id 99/)
    const losses = async (calibration: CalibrationOptions, rest = {}) => {
      const own = await loadModel(folder, { device: 'cpu', threads: 1 })
      try {
        const { layers } = await prune(own, { calibration, sparsity: 0.5, ...rest })
        return layers.map(({ loss }) => loss!)
      } finally {
        await own.dispose()
      }
    }
    // Drawn and then given, they are the same windows.
    expect(await losses({ windows: drawn(text) })).toEqual(await losses({ tokens: text, ...settings }))
    // The order of sequences that do not see each other changes no more than rounding.
    const [forth, back] = [await losses({ windows }), await losses({ windows: [...windows].reverse() })]
    forth.forEach((loss, i) => expect(back[i]! / loss).toBeCloseTo(1, 3))
    expect(await losses({ windows }, { reconstruct: 1, allocation: 'sensitivity' })).toHaveLength(
      forth.length,
    )
    await expectError(losses({ windows }, { distill: true }), 'INVALID_OPTION', /of one length/)
  })
})

test("a file with the name of C4's shard is sampled as C4 is", async () => {
  const documents = [4, 30, 8, 2, 20, 1].map((length, i) => randomTokens(length, i + 1))
  const lines = documents.map((tokens) => JSON.stringify({ text: asText(tokens), url: 'x' })).join('\n')
  const parent = await temporaryFolder()
  const files = ['c4-train.00000-of-01024.json.gz', 'c4-train.00003-of-01024.json', 'some.json'].map((name) =>
    join(parent, name),
  )
  await writeFile(files[0]!, gzipSync(lines))
  await writeFile(files[1]!, lines)
  await writeFile(files[2]!, lines)
  const [packed, plain, joined] = await Promise.all(files.map((file) => windowsOf({ file })))
  const within = (window: Int32Array) => documents.some((tokens) => tokens.join().includes(window.join()))
  expect(packed!.every(within)).toBe(true)
  expect(plain).toEqual(packed)
  expect(joined!.every(within)).toBe(false)
})

describe('a long text', () => {
  /** Words of letters, between which a text can be cut, and a token at either end. */
  const words = Array.from({ length: 26 }, (_, i) => String.fromCharCode(97 + i).repeat(2))
  const special = { SpecialToken: { id: '<s>', type_id: 0 } }
  const tokenizerJson = {
    ...{ version: '1.0', truncation: null, padding: null, normalizer: null, decoder: null },
    added_tokens: [],
    pre_tokenizer: { type: 'WhitespaceSplit' },
    post_processor: {
      type: 'TemplateProcessing',
      single: [special, { Sequence: { id: 'A', type_id: 0 } }, special],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    model: {
      type: 'WordLevel',
      unk_token: '<unk>',
      vocab: Object.fromEntries(['<unk>', '<s>', ...words].map((word, i) => [word, i])),
    },
  }
  const whole = randomTokens(400_000)
    .map((id) => words[id % 26]!)
    .join(' ')
  let cut: Model
  beforeAll(async () => {
    const own = await writeTinyModel(await temporaryFolder())
    await writeFile(join(own, 'tokenizer.json'), JSON.stringify(tokenizerJson))
    cut = await loadModel(own, { device: 'cpu', threads: 1 })
  })
  afterAll(() => cut.dispose())

  test('is encoded only as far as the windows of an evaluation need it, and progress grows', async () => {
    const file = join(await temporaryFolder(), 'long.txt')
    await writeFile(file, whole)
    const fractions: number[] = []
    const source = calibrationSource.parse({ file, onEncode: (fraction: number) => fractions.push(fraction) })
    const all = await evaluationTokens(engineOf(cut), source, { sequenceLength: 8 })
    expect(all).toHaveLength(400_002)
    expect([all[0], all.at(-1)]).toEqual([1, 1])
    expect(fractions.length).toBeGreaterThan(1)
    expect(fractions.at(-1)).toBe(1)
    const some = await evaluationTokens(engineOf(cut), source, { sequenceLength: 8, windows: 4 })
    expect(some.length).toBeLessThan(150_000)
    expect(some).toEqual(all.slice(0, some.length))
  })

  test('is encoded as a whole would be, wherever it is parted, and reading stops at an abort', async () => {
    const tokenizer = await cut.tokenizer()
    const text = whole.slice(0, 500_001)
    const expected = await tokenizer.encode(text)
    for (const size of [1000, 70_001, 1_000_000]) {
      async function* parts() {
        for (let at = 0; at < text.length; at += size) yield text.slice(at, at + size)
      }
      expect(await tokenizer.encodeParts(parts())).toEqual(expected)
    }
    const stop = new AbortController()
    let closed = false
    async function* endless() {
      try {
        for (;;) {
          yield `${text} `
          stop.abort()
        }
      } finally {
        closed = true
      }
    }
    await expectError(tokenizer.encodeParts(endless(), { signal: stop.signal }), 'ABORTED', /./)
    expect(closed).toBe(true)
  })
})
