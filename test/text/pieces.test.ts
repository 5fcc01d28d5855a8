import { mkdtemp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Tokenizer as NativeTokenizer } from 'tokenizers'
import { cuttingOf, piecesOf } from '../../src/text/pieces.js'
import { loadTokenizer } from '../../src/text/tokenizer.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'

const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }
const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' }
const metaspace = { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true }
const split = (Regex: string) => ({ type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false })
const gpt4 = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
const bloom = String.raw` ?[^(\s|[.,!?…。，、।۔،])]+`
const contraction = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)?`
const gpt4o = String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+${contraction}|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*${contraction}|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
const sequence = (field: string, ...steps: object[]) => ({ type: 'Sequence', [field]: steps })
const template = {
  type: 'TemplateProcessing',
  single: [
    { SpecialToken: { id: '<s>', type_id: 0 } },
    { Sequence: { id: 'A', type_id: 0 } },
    { SpecialToken: { id: '<s>', type_id: 0 } },
  ],
  pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
  special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
}
const added = (content: string, change: object = {}) => ({
  ...{ id: 1, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
  ...change,
})

/** Byte-pair encoding with merges that join what they can, also over spaces. */
function bpe(space: string, merges: [string, string][]) {
  const characters = [
    "'",
    ...Array.from(' abstABя漢。1é.\n\t'),
    '▁',
    'Ġ',
    'Ċ',
    'ĉ',
    'Ã',
    '©',
    '<',
    '>',
    space,
  ]
  const tokens = new Set(['<unk>', '<s>', ...characters, ...merges.map((pair) => pair.join(''))])
  return {
    type: 'BPE',
    unk_token: '<unk>',
    fuse_unk: true,
    byte_fallback: false,
    vocab: Object.fromEntries([...tokens].map((token, i) => [token, i])),
    merges: merges.map((pair) => pair.join(' ')),
  }
}

const json = (parts: object) =>
  JSON.stringify({
    ...{ version: '1.0', truncation: null, padding: null, added_tokens: [added('<s>')], normalizer: null },
    ...{ pre_tokenizer: null, post_processor: null, decoder: null },
    ...parts,
  })

const words = (space: string): [string, string][] => [
  ['a', 'b'],
  [space, 'a'],
  [space, 'ab'],
  ['s', 't'],
]
/** A merge of a letter with the space behind it, which forbids a cut there. */
const across = (space: string): [string, string][] => [['a', space], ...words(space)]

/** By name: tokenizers that may be cut, each with a prefix and a suffix. */
const cut: Record<string, string> = {
  GPT: json({ pre_tokenizer: byteLevel, model: bpe('Ġ', words('Ġ')), post_processor: template }),
  'GPT with a leading space': json({
    pre_tokenizer: { ...byteLevel, add_prefix_space: true },
    model: bpe('Ġ', across('Ġ')),
  }),
  'digits and bytes': json({
    pre_tokenizer: sequence('pretokenizers', { type: 'Digits', individual_digits: true }, byteLevel),
    normalizer: { type: 'NFC' },
    model: bpe('Ġ', words('Ġ')),
  }),
  'Llama 3': json({
    pre_tokenizer: sequence('pretokenizers', split(gpt4), { ...byteLevel, use_regex: false }),
    model: { ...bpe('Ġ', words('Ġ')), ignore_merges: true },
    post_processor: sequence('processors', byteLevel, template),
  }),
  'Llama 2': json({
    normalizer: sequence('normalizers', { type: 'Prepend', prepend: '▁' }, replace),
    model: bpe('▁', across('▁')),
    post_processor: template,
  }),
  Gemma: json({
    normalizer: replace,
    pre_tokenizer: {
      type: 'Split',
      pattern: { String: ' ' },
      behavior: 'MergedWithPrevious',
      invert: false,
    },
    model: bpe('▁', across('▁')),
  }),
  Metaspace: json({ pre_tokenizer: metaspace, model: bpe('▁', words('▁')), post_processor: template }),
  'Metaspace that does not split': json({
    pre_tokenizer: { ...metaspace, split: false, prepend_scheme: 'first' },
    model: bpe('▁', across('▁')),
  }),
  'GPT, taken apart': json({
    normalizer: sequence('normalizers', { type: 'NFKD' }, { type: 'Lowercase' }),
    pre_tokenizer: byteLevel,
    model: bpe('Ġ', words('Ġ')),
  }),
  BLOOM: json({
    pre_tokenizer: sequence('pretokenizers', split(bloom), { ...byteLevel, use_regex: false }),
    model: bpe('Ġ', words('Ġ')),
  }),
  'GPT-4o': json({
    pre_tokenizer: sequence('pretokenizers', split(gpt4o), { ...byteLevel, use_regex: false }),
    model: bpe('Ġ', words('Ġ')),
  }),
  'spaces only': json({ pre_tokenizer: { type: 'WhitespaceSplit' }, model: bpe('▁', words('▁')) }),
  Bert: json({ pre_tokenizer: { type: 'BertPreTokenizer' }, model: bpe('▁', words('▁')) }),
  words: json({
    pre_tokenizer: { type: 'Whitespace' },
    normalizer: { type: 'Lowercase' },
    model: { type: 'WordLevel', vocab: { '<unk>': 0, a: 1, b: 2, ab: 3 }, unk_token: '<unk>' },
  }),
}

/** By name: tokenizers of which nothing is known, or that look across a cut. */
const whole: Record<string, string> = {
  'an expression that is not known': json({ pre_tokenizer: split('[a-z] [a-z]'), model: bpe('Ġ', []) }),
  'every letter merged with a space': json({
    normalizer: replace,
    model: bpe(
      '▁',
      Array.from('abstABя漢').flatMap((letter) =>
        Array.from('▁\n.。').map((next): [string, string] => [letter, next]),
      ),
    ),
  }),
  'an added token of two words': json({
    pre_tokenizer: byteLevel,
    added_tokens: [added('a b')],
    model: bpe('Ġ', []),
  }),
  'an added token that takes the space behind it': json({
    pre_tokenizer: byteLevel,
    added_tokens: [added('<s', { rstrip: true })],
    model: bpe('Ġ', []),
  }),
  'an added space': json({ pre_tokenizer: byteLevel, added_tokens: [added(' ')], model: bpe('Ġ', []) }),
  'stripped ends': json({
    normalizer: { type: 'Strip', strip_left: true, strip_right: true },
    pre_tokenizer: byteLevel,
    model: bpe('Ġ', []),
  }),
  dropout: json({ pre_tokenizer: byteLevel, model: { ...bpe('Ġ', []), dropout: 0.1 } }),
  'bytes that are not split': json({
    pre_tokenizer: { ...byteLevel, use_regex: false },
    model: bpe(' ', []),
  }),
  'something damaged': '{',
}

const text = fc
  .array(
    fc.constantFrom(
      ...Array.from("  aabbstAB1é.\n\t'"),
      "'s",
      "a's b",
      ' <s> ',
      'a b',
      ' ab',
      '▁',
      ...Array.from('漢я。、…́'),
      '漢漢。漢漢，漢',
      'a\n\nb.a',
      'a b a b',
    ),
  )
  .map((parts) => parts.join(''))

describe('a text in pieces', () => {
  test.each(Object.entries(cut))('has the ids of the whole: %s', async (_name, tokenizer) => {
    const cutting = cuttingOf(tokenizer)!
    expect(cutting).toBeDefined()
    const native = NativeTokenizer.fromString(tokenizer)
    const encode = async (piece: string) => [
      ...(await native.encode(piece, null, { addSpecialTokens: true })).getIds(),
    ]
    let pieceCount = 0
    await fc.assert(
      fc.asyncProperty(text, fc.integer({ min: 0, max: 5 }), async (sample, length) => {
        const pieces = [...piecesOf(sample, cutting, length)]
        pieceCount += pieces.length - 1
        const ids: number[] = []
        for (const [i, piece] of pieces.entries()) {
          const own = await encode(piece)
          const from = i === 0 ? 0 : cutting.before
          ids.push(...own.slice(from, i === pieces.length - 1 ? undefined : own.length - cutting.after))
        }
        expect(ids).toEqual(await encode(sample))
      }),
      { numRuns: 500 },
    )
    expect(pieceCount).toBeGreaterThan(100) // else it has shown little
  })

  test.each(Object.entries(whole))('is not cut by %s', (_name, tokenizer) => {
    expect(cuttingOf(tokenizer)).toBeUndefined()
  })

  test.each([added('<a.b>'), added('。x', { single_word: true })])(
    'is cut at spaces only because of an added token, %j',
    (token) => {
      const tokenizer = json({ pre_tokenizer: byteLevel, added_tokens: [token], model: bpe('Ġ', []) })
      expect([...cuttingOf(tokenizer)!.letters.keys()]).toEqual([' '])
    },
  )

  test('is cut only after letters that no merge joins with a space', () => {
    expect(cuttingOf(cut['Llama 2']!)?.letters).toEqual(new Map([[' ', new Set('bstABя漢')]]))
  })

  test('is all there, and no piece is short but the last', () => {
    const letters = new Map([[' ', new Set('abc')]])
    const cutting = { letters, dropsSpace: false, before: 0, after: 0 }
    const sample = 'a b 1 c\nb c a b'
    for (let length = 0; length < 20; length++) {
      const pieces = [...piecesOf(sample, cutting, length)]
      expect(pieces.join('')).toBe(sample)
      for (const piece of pieces.slice(0, -1)) expect(piece.length).toBeGreaterThanOrEqual(length)
    }
    expect([...piecesOf(sample, cutting, 2)]).toEqual(['a b 1 c\nb', ' c', ' a', ' b'])
  })
})

describeWithShared('a long text', () => {
  test('has the ids of the whole', async () => {
    const folder = sharedPath('models', 'TinyStories-656K')!
    const sample = (await readFile(sharedPath('data', 'c4.calibration.txt')!, 'utf8')).slice(0, 500_000)
    const native = NativeTokenizer.fromString(await readFile(join(folder, 'tokenizer.json'), 'utf8'))
    const ids = await (await loadTokenizer(folder)).encode(sample)
    expect(ids).toEqual(Int32Array.from((await native.encode(sample)).getIds()))
  })
})

describe('a hostile tokenizer.json', () => {
  const load = async (tokenizer: object) => {
    const folder = await mkdtemp(join(await temporaryFolder(), 'model-'))
    await writeFile(join(folder, 'tokenizer.json'), json({ model: bpe('Ġ', []), ...tokenizer }))
    return loadTokenizer(folder)
  }
  const code = 'INVALID_CHECKPOINT'

  test('that aborts the library when it is loaded is refused', async () => {
    const normalizer = { type: 'Precompiled', precompiled_charsmap: '/////w==' }
    await expect(load({ normalizer })).rejects.toMatchObject({
      code,
      message: expect.stringMatching(
        /tokenizer\.json cannot be loaded: its process ended with SIGABRT.*panicked/,
      ),
    })
  })

  test('that aborts the library when it encodes is refused, every time', async () => {
    const tokenizer = await load({ pre_tokenizer: { type: 'FixedLength', length: 0 } })
    const encoding = [tokenizer.encode('a'), tokenizer.encode('b')]
    for (const promise of encoding) {
      await expect(promise).rejects.toMatchObject({
        code,
        message: expect.stringMatching(/tokenizer\.json cannot encode the text: its process ended/),
      })
    }
  })

  test('that takes any amount of memory is refused', async () => {
    const tenfold = { type: 'Replace', pattern: { String: 'a' }, content: 'aaaaaaaaaa' }
    const normalizer = sequence('normalizers', ...Array.from({ length: 14 }, () => tenfold))
    const tokenizer = await load({ normalizer })
    await expect(tokenizer.encode('a')).rejects.toMatchObject({
      code,
      message: expect.stringMatching(/takes more than 0\.6 GB of memory/),
    })
    expect((await tokenizer.encode('b')).length).toBe(1)
  })

  test('is stopped by a signal, and serves again', async () => {
    const doubled = { type: 'Replace', pattern: { Regex: '(b|bb)' }, content: 'bb' }
    const normalizer = sequence('normalizers', ...Array.from({ length: 18 }, () => doubled))
    const tokenizer = await load({ normalizer })
    const stopped = tokenizer.encode('b'.repeat(1000), { signal: AbortSignal.timeout(300) })
    const start = performance.now()
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' })
    expect(performance.now() - start).toBeLessThan(5000)
    expect((await tokenizer.encode('a')).length).toBe(1)
  })
})
