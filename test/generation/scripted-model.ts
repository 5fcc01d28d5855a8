import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeSafetensors } from '../files/files.js'

/** The tokens of a scripted model beside the bytes of its texts. */
export const specials = ['<bos>', '<end>', '<also-end>']

/** GPT-2's character for every byte. */
function byteCharacters(): string[] {
  let others = 0
  return Array.from({ length: 256 }, (_, byte) => {
    const shown = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad)
    return String.fromCharCode(shown ? byte : 256 + others++)
  })
}

/**
 * Writes a model that says a text byte by byte, each byte being a token, and repeats it for ever; it begins behind the text's first
 * byte or `<bos>`. All bytes of the text must differ, since a token decides the next one. A name of specials in `text` is that token.
 * Returns the ids of the text's tokens.
 */
export async function writeScriptedModel(
  folder: string,
  text: string,
  files: Record<string, unknown> = {},
): Promise<number[]> {
  await mkdir(folder, { recursive: true })
  const parts = text.split(new RegExp(`(${specials.join('|')})`)).filter((part) => part !== '')
  const bytes = parts.flatMap((part) => (specials.includes(part) ? [] : [...Buffer.from(part)]))
  const vocab = [...specials, ...bytes.map((byte) => byteCharacters()[byte]!)]
  let next = specials.length
  const ids = parts.flatMap((part) =>
    specials.includes(part) ? [specials.indexOf(part)] : [...Buffer.from(part)].map(() => next++),
  )
  const successors = new Map(ids.map((id, i) => [id, ids[(i + 1) % ids.length]!]))
  if (!successors.has(0)) successors.set(0, ids[0]!)

  // The block adds nothing, and the head knows a token by its place.
  const size = vocab.length + (vocab.length % 2)
  const matrix = (rows: number, columns: number, ones: [number, number][] = []) => {
    const values = new Float32Array(rows * columns)
    for (const [i, j] of ones) values[i * columns + j] = 1
    return { dtype: 'F32' as const, shape: [rows, columns], data: new Uint8Array(values.buffer) }
  }
  const vector = () => ({
    dtype: 'F32' as const,
    shape: [size],
    data: new Uint8Array(new Float32Array(size).fill(1).buffer),
  })
  const block = 'model.layers.0.'
  const linears = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj']
  linears.push('mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj')
  await writeSafetensors(join(folder, 'model.safetensors'), [
    {
      name: 'model.embed_tokens.weight',
      ...matrix(
        size,
        size,
        Array.from({ length: size }, (_, i): [number, number] => [i, i]),
      ),
    },
    {
      name: 'lm_head.weight',
      ...matrix(
        size,
        size,
        [...successors].map(([from, to]) => [to, from]),
      ),
    },
    { name: 'model.norm.weight', ...vector() },
    { name: `${block}input_layernorm.weight`, ...vector() },
    { name: `${block}post_attention_layernorm.weight`, ...vector() },
    ...linears.map((name) => ({ name: `${block}${name}.weight`, ...matrix(size, size) })),
  ])
  const config = {
    model_type: 'llama',
    vocab_size: size,
    hidden_size: size,
    intermediate_size: size,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    max_position_embeddings: 4096,
    tie_word_embeddings: false,
    bos_token_id: 0,
  }
  const tokenizer = {
    version: '1.0',
    added_tokens: specials.map((content, id) => ({
      ...{ id, content, special: true },
      ...{ single_word: false, lstrip: false, rstrip: false, normalized: false },
    })),
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<bos>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<bos>': { id: '<bos>', ids: [0], tokens: ['<bos>'] } },
    },
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
    model: {
      type: 'BPE',
      vocab: Object.fromEntries(vocab.map((content, id) => [content, id])),
      merges: [],
    },
  }
  const all: Record<string, unknown> = { 'config.json': config, 'tokenizer.json': tokenizer, ...files }
  if (files['config.json']) all['config.json'] = { ...config, ...(files['config.json'] as object) }
  for (const [name, contents] of Object.entries(all))
    await writeFile(join(folder, name), typeof contents === 'string' ? contents : JSON.stringify(contents))
  return ids
}
