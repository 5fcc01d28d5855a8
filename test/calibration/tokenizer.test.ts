import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { readText } from '../../src/calibration/text.js'
import { loadTokenizer } from '../../src/calibration/tokenizer.js'
import { drawWindows } from '../../src/calibration/windows.js'
import { describeWithShared, sharedPath } from '../shared.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sparsegpt-test-'))
})
afterAll(() => rm(folder, { recursive: true }))

/** Words a, b and an unknown one; a post-processor that puts `<s>` first. */
const small = {
  version: '1.0',
  truncation: { direction: 'Right', max_length: 3, strategy: 'LongestFirst', stride: 0 },
  padding: {
    strategy: { Fixed: 16 },
    direction: 'Right',
    pad_to_multiple_of: null,
    pad_id: 0,
    pad_type_id: 0,
    pad_token: '<unk>',
  },
  added_tokens: [
    {
      id: 3,
      content: '<s>',
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    },
  ],
  normalizer: null,
  pre_tokenizer: { type: 'Whitespace' },
  post_processor: {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
    special_tokens: { '<s>': { id: '<s>', ids: [3], tokens: ['<s>'] } },
  },
  decoder: null,
  model: { type: 'WordLevel', vocab: { '<unk>': 0, a: 1, b: 2 }, unk_token: '<unk>' },
}

const save = (contents: string) => writeFile(join(folder, 'tokenizer.json'), contents)

describe('loadTokenizer', () => {
  test('encodes with the post-processor, without truncation or padding', async () => {
    await save(JSON.stringify(small))
    const tokenizer = await loadTokenizer(folder)
    expect(tokenizer.vocabularySize).toBe(4)
    expect([...(await tokenizer.encode('a b c a b'))]).toEqual([3, 1, 2, 0, 1, 2])
    expect([...(await tokenizer.encode(''))]).toEqual([3])
  })

  test('gives an Int32Array', async () => {
    await save(JSON.stringify(small))
    const ids = await (await loadTokenizer(folder)).encode('a')
    expect(ids).toBeInstanceOf(Int32Array)
  })

  test('says what to do when tokenizer.json is missing', async () => {
    await expect(loadTokenizer(join(folder, 'nowhere'))).rejects.toMatchObject({
      code: 'FILE_NOT_FOUND',
      message: expect.stringMatching(/tokenizer\.json does not exist.*save_pretrained/),
    })
  })

  test.each(['', '{', '[]', '{}', JSON.stringify({ ...small, model: { type: 'Magic' } })])(
    'refuses the damaged file %j',
    async (contents) => {
      await save(contents)
      await expect(loadTokenizer(folder)).rejects.toMatchObject({
        code: 'INVALID_CHECKPOINT',
        message: expect.stringContaining(join(folder, 'tokenizer.json')),
      })
    },
  )
})

describeWithShared('TinyStories-656K', () => {
  test('has the tokens and the calibration offsets of the reference', async () => {
    const golden = JSON.parse(await readFile(sharedPath('golden', 'tinystories-656k.json')!, 'utf8')) as {
      runs: { method: string; seed: number; seqlen: number; calibrationTokens?: number; offsets?: number[] }[]
    }
    const run = golden.runs.find(({ calibrationTokens }) => calibrationTokens !== undefined)!
    const tokenizer = await loadTokenizer(sharedPath('models', 'TinyStories-656K')!)
    expect(tokenizer.vocabularySize).toBe(2048)
    const tokens = await tokenizer.encode(await readText(sharedPath('data', 'tinystories.calibration.txt')!))
    expect(tokens).toHaveLength(run.calibrationTokens!)
    expect(tokens).toHaveLength(119451)
    const { seqlen: sequenceLength, seed } = run
    const { offsets } = drawWindows(tokens, { samples: 64, sequenceLength, seed })
    expect(offsets.slice(0, run.offsets!.length)).toEqual(run.offsets)
    expect(run.offsets).toHaveLength(8)
  })
})
