import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PythonRandom } from '../src/text/python-random.js'
import { writeSafetensors, type TestTensor } from './files/files.js'

export const vocabulary = 32
export const hidden = 24

interface Layout {
  config: Record<string, unknown>
  /** Shapes by name; norms are one-dimensional. */
  tensors: Record<string, number[]>
}

const blocks = 2

function llamaLayout(): Layout {
  const tensors: Layout['tensors'] = {
    'model.embed_tokens.weight': [vocabulary, hidden],
    'model.norm.weight': [hidden],
  }
  for (let i = 0; i < blocks; i++) {
    const p = `model.layers.${i}.`
    Object.assign(tensors, {
      [`${p}input_layernorm.weight`]: [hidden],
      [`${p}self_attn.q_proj.weight`]: [hidden, hidden],
      [`${p}self_attn.k_proj.weight`]: [12, hidden],
      [`${p}self_attn.v_proj.weight`]: [12, hidden],
      [`${p}self_attn.o_proj.weight`]: [hidden, hidden],
      [`${p}post_attention_layernorm.weight`]: [hidden],
      [`${p}mlp.gate_proj.weight`]: [40, hidden],
      [`${p}mlp.up_proj.weight`]: [40, hidden],
      [`${p}mlp.down_proj.weight`]: [hidden, 40],
    })
  }
  return {
    config: {
      model_type: 'llama',
      vocab_size: vocabulary,
      hidden_size: hidden,
      intermediate_size: 40,
      num_hidden_layers: blocks,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      max_position_embeddings: 64,
      tie_word_embeddings: true,
    },
    tensors,
  }
}

function gpt2Layout(): Layout {
  const tensors: Layout['tensors'] = { 'wte.weight': [vocabulary, hidden], 'wpe.weight': [64, hidden] }
  Object.assign(tensors, { 'ln_f.weight': [hidden], 'ln_f.bias': [hidden] })
  for (let i = 0; i < blocks; i++) {
    const p = `h.${i}.`
    for (const norm of ['ln_1', 'ln_2']) {
      Object.assign(tensors, { [`${p}${norm}.weight`]: [hidden], [`${p}${norm}.bias`]: [hidden] })
    }
    const shapes = {
      'attn.c_attn': [24, 72],
      'attn.c_proj': [24, 24],
      'mlp.c_fc': [24, 40],
      'mlp.c_proj': [40, 24],
    }
    for (const [name, shape] of Object.entries(shapes)) {
      Object.assign(tensors, { [`${p}${name}.weight`]: shape, [`${p}${name}.bias`]: [shape[1]] })
    }
  }
  const config = {
    model_type: 'gpt2',
    vocab_size: vocabulary,
    n_embd: hidden,
    n_layer: blocks,
    n_head: 4,
    n_inner: 40,
  }
  return { config: { ...config, n_positions: 64 }, tensors }
}

/** Words w0 to w31, separated by blanks, are the tokens 0 to 31. */
const tokenizer = {
  version: '1.0',
  truncation: null,
  padding: null,
  added_tokens: [],
  normalizer: null,
  pre_tokenizer: { type: 'Whitespace' },
  post_processor: null,
  decoder: null,
  model: {
    type: 'WordLevel',
    vocab: Object.fromEntries(Array.from({ length: vocabulary }, (_, i) => [`w${i}`, i])),
    unk_token: 'w0',
  },
}

/**
 * Writes a random model of two blocks and a few thousand weights, float32, with a tokenizer. `change` may spoil the values of
 * a tensor; `more` are further entries of config.json.
 */
export async function writeTinyModel(
  folder: string,
  family: 'llama' | 'gpt2' = 'llama',
  change: (name: string, values: Float32Array) => void = () => undefined,
  more: Record<string, unknown> = {},
): Promise<string> {
  const random = new PythonRandom(7)
  const { config, tensors } = family === 'llama' ? llamaLayout() : gpt2Layout()
  const list = Object.entries(tensors).map(([name, shape]): TestTensor => {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => {
      const value = random.randint(-1000, 1000) / 1000
      return shape.length === 1 ? 1 + value / 4 : value / 2
    })
    change(name, values)
    return { name, dtype: 'F32', shape, data: new Uint8Array(values.buffer) }
  })
  await mkdir(folder, { recursive: true })
  await writeSafetensors(join(folder, 'model.safetensors'), list)
  await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, ...more }))
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer))
  return folder
}

/** Token ids that look nothing like a text, the same every time. */
export function randomTokens(count: number, seed = 1): number[] {
  const random = new PythonRandom(seed)
  return Array.from({ length: count }, () => random.randint(0, vocabulary - 1))
}

/** The same as text for the model's tokenizer. */
export const asText = (tokens: readonly number[]) => tokens.map((id) => `w${id}`).join(' ')
