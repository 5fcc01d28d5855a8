import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { readText } from './read-text.js'
import { loadTokenizer } from '../../src/text/tokenizer.js'
import { drawWindows } from '../../src/text/windows.js'
import { expectError } from '../temporary.js'
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
    expect([...(await tokenizer.encode('a b c a b'))]).toEqual([3, 1, 2, 0, 1, 2])
    expect([...(await tokenizer.encode(''))]).toEqual([3])
    await expect(tokenizer.encode(5 as never)).rejects.toMatchObject({ code: 'INVALID_OPTION' })
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

describe('a text that takes too much', () => {
  test('because it can be cut nowhere is refused, and says what to do', async () => {
    await save(JSON.stringify(small))
    const tokenizer = await loadTokenizer(folder)
    const uncut = 'x'.repeat(2 ** 21 + 1)
    await expectError(
      tokenizer.encode(`a b ${uncut} a`),
      'INVALID_TEXT',
      /stretch of 20971\d\d characters.*at most 2097152.*give a part of it, or its token ids/,
    )
    expect([...(await tokenizer.encode('a b'))]).toEqual([3, 1, 2])
  })

  test('of the memory that is allowed is refused', async () => {
    await save(JSON.stringify(small))
    const tokenizer = await loadTokenizer(folder)
    const memory = 460e6
    expect(await tokenizer.encode('a b '.repeat(1000), { memory })).toHaveLength(2001)
    await expectError(tokenizer.encode('a b '.repeat(300_000), { memory }), 'OUT_OF_MEMORY', /up to 0\.46 GB/)
    await expectError(tokenizer.encode('x'.repeat(100_000), { memory }), 'OUT_OF_MEMORY', /up to 0\.51 GB/)
  })
})

test('loadTokenizer knows a Git LFS pointer', async () => {
  await save('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n')
  await expectError(loadTokenizer(folder), 'INVALID_CHECKPOINT', /tokenizer\.json is a Git LFS pointer/)
})

describe("GPT-2's tokenizer files, where there is no tokenizer.json", () => {
  const write = async (config: object, vocabulary?: string) => {
    const path = await mkdtemp(join(folder, 'gpt2-'))
    const vocab = { '<s>': 0, a: 1, b: 2, Ġ: 3, ab: 4, Ġab: 5 }
    await writeFile(join(path, 'vocab.json'), vocabulary ?? JSON.stringify(vocab))
    await writeFile(join(path, 'merges.txt'), '#version: 0.2\na b\nĠ ab\n')
    await writeFile(join(path, 'tokenizer_config.json'), JSON.stringify(config))
    return path
  }
  const config = { tokenizer_class: 'GPT2Tokenizer', bos_token: { content: '<s>' }, eos_token: '<s>' }

  test.each([
    ['without a leading token', config, [4, 5, 3, 1, 0, 2]],
    ["with OPT's leading token", { ...config, add_bos_token: true }, [0, 4, 5, 3, 1, 0, 2]],
    ['with a leading blank', { ...config, add_prefix_space: true }, [5, 5, 3, 1, 0, 3, 2]],
  ])('are read, %s', async (_title, settings, ids) => {
    const tokenizer = await loadTokenizer(await write(settings))
    expect([...(await tokenizer.encode('ab ab a<s>b'))]).toEqual(ids)
  })

  test.each([{}, undefined])(
    'are read for a family that has it, with tokenizer_config.json of %j',
    async (settings) => {
      const path = await write(settings ?? {})
      if (!settings) await rm(join(path, 'tokenizer_config.json'))
      await writeFile(join(path, 'config.json'), '{"model_type":"gpt2","x":NaN}')
      const tokenizer = await loadTokenizer(path)
      expect([...(await tokenizer.encode('ab ab a'))]).toEqual([4, 5, 3, 1])
    },
  )

  test('are not read where neither the class nor the family is known', async () => {
    const path = await write({})
    await expect(loadTokenizer(path)).rejects.toMatchObject({ code: 'FILE_NOT_FOUND' })
    await writeFile(join(path, 'config.json'), '{"model_type":"qwen2"}')
    await expect(loadTokenizer(path)).rejects.toMatchObject({ code: 'FILE_NOT_FOUND' })
  })

  test('are not taken for those of another tokenizer', async () => {
    const path = await write({ tokenizer_class: 'Qwen2Tokenizer' })
    await expect(loadTokenizer(path)).rejects.toMatchObject({ code: 'FILE_NOT_FOUND' })
  })

  test.each(['{', '[]', '{"a":"b"}'])('are refused when vocab.json is %s', async (vocabulary) => {
    const path = await write(config, vocabulary)
    await expect(loadTokenizer(path)).rejects.toMatchObject({
      code: 'INVALID_CHECKPOINT',
      message: expect.stringContaining('vocab.json'),
    })
  })
})

describeWithShared('TinyStories-656K', () => {
  test('has the tokens and the calibration offsets of the reference', async () => {
    const golden = JSON.parse(await readFile(sharedPath('golden', 'tinystories-656k.json')!, 'utf8')) as {
      runs: { method: string; seed: number; seqlen: number; calibrationTokens?: number; offsets?: number[] }[]
    }
    const run = golden.runs.find(({ calibrationTokens }) => calibrationTokens !== undefined)!
    const tokenizer = await loadTokenizer(sharedPath('models', 'TinyStories-656K')!)
    const tokens = await tokenizer.encode(await readText(sharedPath('data', 'tinystories.calibration.txt')!))
    expect(tokens).toHaveLength(run.calibrationTokens!)
    expect(tokens).toHaveLength(119451)
    const { seqlen: sequenceLength, seed } = run
    const windows = drawWindows(tokens, { samples: 64, sequenceLength, seed })
    expect(run.offsets).toHaveLength(8)
    expect(windows.slice(0, 8)).toEqual(
      run.offsets!.map((offset) => tokens.slice(offset, offset + sequenceLength)),
    )
  })
})
