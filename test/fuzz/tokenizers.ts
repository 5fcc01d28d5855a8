const parts = {
  version: '1.0',
  truncation: null,
  padding: null,
  added_tokens: [],
  normalizer: null,
  pre_tokenizer: null,
  post_processor: null,
  decoder: null,
}

const ids = (tokens: readonly string[]) => Object.fromEntries(tokens.map((token, id) => [token, id]))
const special = (id: number, content: string) => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
})

/** Tokenizer files of each of the library's models, with 16 tokens each, and with most of its other parts. */
export const tokenizers = {
  words: {
    ...parts,
    pre_tokenizer: { type: 'Whitespace' },
    model: {
      type: 'WordLevel',
      vocab: ids(Array.from({ length: 16 }, (_, i) => `w${i}`)),
      unk_token: 'w0',
    },
  },
  bytePairs: {
    ...parts,
    truncation: { direction: 'Right', max_length: 8, strategy: 'LongestFirst', stride: 0 },
    added_tokens: [special(0, '<s>')],
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        {
          type: 'Split',
          pattern: { Regex: "'s| ?\\p{L}+| ?\\p{N}{1,3}|\\s+(?!\\S)|\\s+" },
          behavior: 'Isolated',
          invert: false,
        },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [0], tokens: ['<s>'] } },
    },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<s>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: ids(['<s>', 'w', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'Ġ', 'Ġw', 'Ġw1', '12']),
      merges: ['Ġ w', 'Ġw 1', '1 2'],
    },
  },
  unigram: {
    ...parts,
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'NFKC' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
        { type: 'Prepend', prepend: '▁' },
      ],
    },
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    padding: {
      strategy: { Fixed: 12 },
      direction: 'Right',
      pad_to_multiple_of: null,
      pad_id: 0,
      pad_type_id: 0,
      pad_token: '<unk>',
    },
    model: {
      type: 'Unigram',
      unk_id: 0,
      byte_fallback: false,
      vocab: ['<unk>', '▁', 'w', '▁w', '▁w1', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '12'].map(
        (token, i) => [token, -i],
      ),
    },
  },
  wordPieces: {
    ...parts,
    added_tokens: [special(0, '[UNK]'), special(1, '[CLS]')],
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: { type: 'BertProcessing', sep: ['[UNK]', 0], cls: ['[CLS]', 1] },
    model: {
      type: 'WordPiece',
      unk_token: '[UNK]',
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab: ids([
        '[UNK]',
        '[CLS]',
        'w',
        'w1',
        '##0',
        '##1',
        '##2',
        '##3',
        '##4',
        '##5',
        '##6',
        '##7',
        '##8',
      ]),
    },
  },
}
