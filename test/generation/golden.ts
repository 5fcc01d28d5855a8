import { readFileSync } from 'node:fs'
import { readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'

/** What transformers generates: by model the entries of config.json that greedy.py has changed, and what follows each prompt. */
export const greedy = JSON.parse(
  readFileSync(fileURLToPath(new URL('./greedy.json', import.meta.url)), 'utf8'),
) as Record<string, { config: Record<string, number>; texts: { prompt: number; tokens: string }[] }>

/** The prompts of greedy.py, token ids. */
export const promptOf = (length: number, vocabulary: number) =>
  Array.from({ length }, (_, i) => 3 + ((i * i + 5 * i + length) % (vocabulary - 3)))

/**
 * A golden model as greedy.py has it: with these changes of its config.json, no token that ends a text, and words
 * w0, w1, … for its tokens. `kvWidth`: the number of elements of a token's keys in a block (of families that name their sizes as
 * LLaMA does).
 */
export async function longGolden(
  name: string,
  changes: Record<string, unknown> = greedy[name]?.config ?? {},
): Promise<{ folder: string; vocabulary: number; kvWidth: number }> {
  const source = sharedPath('golden', 'models', name) ?? ''
  const config = JSON.parse(await readFile(join(source, 'config.json'), 'utf8')) as Record<string, unknown>
  Object.assign(config, changes, { eos_token_id: null })
  const folder = await temporaryFolder()
  const vocabulary = config['vocab_size'] as number
  const vocab = Object.fromEntries(Array.from({ length: vocabulary }, (_, i) => [`w${i}`, i]))
  const tokenizer = {
    version: '1.0',
    added_tokens: [],
    pre_tokenizer: { type: 'Whitespace' },
    model: { type: 'WordLevel', vocab, unk_token: 'w0' },
  }
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  await symlink(join(source, 'model.safetensors'), join(folder, 'model.safetensors'))
  const { hidden_size: hidden, num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim } = config
  const headDim = (head_dim ?? (hidden as number) / (heads as number)) as number
  return { folder, vocabulary, kvWidth: ((kvHeads ?? heads) as number) * headDim }
}
