import { readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { Tokenizer as NativeTokenizer } from 'tokenizers'
import { SparseGptError } from '../errors.js'
import { gpt2Tokenizer } from './gpt2-tokenizer.js'

/** What turns a text into the token ids that a model was trained with. */
export interface Tokenizer {
  /**
   * The ids of `text` as one sequence, post-processor included (so, for example, with one leading `<s>`). Runs on a
   * native thread.
   *
   * @throws SparseGptError INVALID_TEXT when the tokenizer cannot encode it.
   */
  encode(text: string): Promise<Int32Array>
}

/**
 * Loads `tokenizer.json` of a model folder (Hugging Face's format, read by its own library). Truncation and padding that
 * the file may ask for are switched off: a whole text file is encoded as one sequence. In the place of a missing
 * tokenizer.json, the vocab.json and merges.txt of GPT-2 and OPT are taken.
 *
 * @throws SparseGptError FILE_NOT_FOUND when there is none of these; INVALID_CHECKPOINT when it is damaged.
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const file = join(resolve(folder), 'tokenizer.json')
  const json = await readFile(file, 'utf8').catch(async (error: unknown) => {
    const { code, message } = error as NodeJS.ErrnoException
    const older = code === 'ENOENT' ? await gpt2Tokenizer(resolve(folder)) : undefined
    if (older !== undefined) return older
    const what = code === 'ENOENT' ? 'does not exist' : `cannot be read (${message})`
    throw new SparseGptError(
      'FILE_NOT_FOUND',
      `${file} ${what}: copy it from the model's repository, or make it with transformers ` +
        '(AutoTokenizer.from_pretrained(model).save_pretrained(folder))',
      { cause: error },
    )
  })
  let native: NativeTokenizer
  try {
    native = NativeTokenizer.fromString(json)
    native.disableTruncation()
    native.disablePadding()
  } catch (error) {
    throw new SparseGptError(
      'INVALID_CHECKPOINT',
      `${file} is not a valid tokenizer file: ${(error as Error).message}`,
      { cause: error },
    )
  }
  return {
    async encode(text) {
      try {
        const encoding = await native.encode(text, null, { addSpecialTokens: true })
        return Int32Array.from(encoding.getIds())
      } catch (error) {
        throw new SparseGptError(
          'INVALID_TEXT',
          `the tokenizer ${file} cannot encode the text: ${(error as Error).message}`,
          { cause: error },
        )
      }
    },
  }
}
