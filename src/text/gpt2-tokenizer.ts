import { join } from 'node:path'
import * as z from 'zod'
import { parseJson } from '../files/python-json.js'
import { reason } from '../files/read-error.js'
import { readRegularFile } from '../files/regular-file.js'
import { SparseGptError } from '../errors.js'

const maxFileBytes = 2 ** 26

const token = z.union([z.string(), z.object({ content: z.string() }).transform(({ content }) => content)])

/** The families whose tokenizer is GPT-2's where the folder does not name one. */
const families = ['gpt2', 'gpt_neo', 'gptj', 'opt']

/** The token that GPT-2's tokenizer has for every purpose that is not settled. */
const endOfText = '<|endoftext|>'

const configSchema = z.object({
  tokenizer_class: z.enum(['GPT2Tokenizer', 'GPT2TokenizerFast']).nullish(),
  add_prefix_space: z.boolean().default(false),
  add_bos_token: z.boolean().default(false),
  bos_token: token.nullish(),
  eos_token: token.nullish(),
  unk_token: token.nullish(),
  pad_token: token.nullish(),
})

/**
 * The contents of a tokenizer.json for a model folder that has only vocab.json and merges.txt, as GPT-2 and OPT were
 * published: byte-level BPE as transformers' GPT2Tokenizer, with a leading bos token where tokenizer_config.json asks for
 * it. Undefined when the folder does not have these files, or names another tokenizer, or names none and config.json is not
 * that of a family that has GPT-2's.
 *
 * Throws INVALID_CHECKPOINT when they are damaged.
 */
export async function gpt2Tokenizer(folder: string): Promise<string | undefined> {
  const names = ['vocab.json', 'merges.txt', 'tokenizer_config.json', 'config.json']
  const texts = await Promise.all(
    names.map((name) =>
      readRegularFile(join(folder, name), {
        maxBytes: maxFileBytes,
        advice: 'a readable file is needed',
      }).then(
        (bytes) => bytes.toString('utf8'),
        () => undefined,
      ),
    ),
  )
  const [vocabulary, merges, settings = '{}', model = '{}'] = texts
  if (vocabulary === undefined || merges === undefined) return undefined
  let vocab: Record<string, number>
  let config: z.output<typeof configSchema>
  try {
    const parsed = configSchema.safeParse(JSON.parse(settings))
    if (!parsed.success) return undefined
    config = parsed.data
    if (config.tokenizer_class == null && !families.includes(modelType(model))) return undefined
    vocab = z.record(z.string(), z.int().min(0)).parse(JSON.parse(vocabulary))
  } catch (error) {
    const message = `${join(folder, 'vocab.json')} or tokenizer_config.json is damaged: ${reason(error)}`
    throw new SparseGptError('INVALID_CHECKPOINT', message, { cause: error })
  }
  const { bos_token: bos = endOfText, eos_token = endOfText, unk_token = endOfText, pad_token } = config
  const special = [...new Set([bos, eos_token, unk_token, pad_token])].filter(
    (content): content is string => typeof content === 'string' && vocab[content] !== undefined,
  )
  const bosId = bos == null ? undefined : vocab[bos]
  return JSON.stringify({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: special.map((content) => ({
      id: vocab[content],
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: 'ByteLevel',
      add_prefix_space: config.add_prefix_space,
      trim_offsets: true,
      use_regex: true,
    },
    post_processor:
      config.add_bos_token && bosId !== undefined
        ? {
            type: 'TemplateProcessing',
            single: [{ SpecialToken: { id: bos, type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
            pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
            special_tokens: { [bos ?? '']: { id: bos, ids: [bosId], tokens: [bos] } },
          }
        : null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: merges.split(/\r?\n/).filter((line) => line !== '' && !line.startsWith('#version')),
    },
  })
}

/** The model_type of a config.json; '' when it has none. */
function modelType(config: string): string {
  const value = (parseJson(config) as Record<string, unknown> | null)?.['model_type']
  return typeof value === 'string' ? value : ''
}
