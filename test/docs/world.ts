import { spawn } from 'node:child_process'
import { chmod, mkdir, readFile, readdir, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { PythonRandom } from '../../src/text/python-random.js'
import { writeSafetensors } from '../files/files.js'
import { HubServer } from '../hub/hub-server.js'
import { temporaryFolder } from '../temporary.js'
import { project } from './blocks.js'

/** Sizes of the model that stands for all others: small enough that a documented job takes a second. */
const sizes = { vocabulary: 2048, hidden: 64, inner: 128, blocks: 2, keys: 32 }

/** Shapes by name of a LLaMA of these sizes. */
function shapes(): [string, number[]][] {
  const { vocabulary, hidden, inner, blocks, keys } = sizes
  const block = (index: number): [string, number[]][] => {
    const prefix = `model.layers.${index}`
    return [
      [`${prefix}.input_layernorm.weight`, [hidden]],
      [`${prefix}.self_attn.q_proj.weight`, [hidden, hidden]],
      [`${prefix}.self_attn.k_proj.weight`, [keys, hidden]],
      [`${prefix}.self_attn.v_proj.weight`, [keys, hidden]],
      [`${prefix}.self_attn.o_proj.weight`, [hidden, hidden]],
      [`${prefix}.post_attention_layernorm.weight`, [hidden]],
      [`${prefix}.mlp.gate_proj.weight`, [inner, hidden]],
      [`${prefix}.mlp.up_proj.weight`, [inner, hidden]],
      [`${prefix}.mlp.down_proj.weight`, [hidden, inner]],
    ]
  }
  return [
    ['model.embed_tokens.weight', [vocabulary, hidden]],
    ['model.norm.weight', [hidden]],
    ...Array.from({ length: blocks }, (_, index) => block(index)).flat(),
  ]
}

/** Writes a random model with the tokenizer of the model in `models/`, and a chat template. */
async function writeModel(folder: string): Promise<void> {
  const random = new PythonRandom(11)
  const tensors = shapes().map(([name, shape]) => {
    const count = shape.reduce((a, b) => a * b, 1)
    const values = Float32Array.from({ length: count }, () => {
      const value = random.randint(-1000, 1000) / 1000
      return shape.length === 1 ? 1 + value / 8 : value / 8
    })
    return { name, dtype: 'F32' as const, shape, data: new Uint8Array(values.buffer) }
  })
  await mkdir(folder, { recursive: true })
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: sizes.vocabulary,
    hidden_size: sizes.hidden,
    intermediate_size: sizes.inner,
    num_hidden_layers: sizes.blocks,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 512,
    tie_word_embeddings: true,
  }
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  const trained = join(project, 'models', 'sotu-3m')
  await writeFile(join(folder, 'tokenizer.json'), await readFile(join(trained, 'tokenizer.json')))
  const settings = JSON.parse(await readFile(join(trained, 'tokenizer_config.json'), 'utf8')) as object
  const template = '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}'
  await writeFile(
    join(folder, 'tokenizer_config.json'),
    JSON.stringify({ ...settings, chat_template: template }),
  )
}

/** Sentences of a fixed stock of words, in an order that is the same every time. */
function sentences(count: number, seed: number): string[] {
  const words =
    'the people of our country and its states have made a great work for peace in all years'.split(' ')
  const random = new PythonRandom(seed)
  const sentence = () =>
    Array.from({ length: 12 }, () => words[random.randint(0, words.length - 1)]).join(' ')
  return Array.from({ length: count }, () => `${sentence()}.`)
}

const parquet = (columns: Record<string, unknown[]>) =>
  Buffer.from(
    parquetWriteBuffer({
      columnData: Object.entries(columns).map(([name, data]) => ({ name, data })),
    }),
  )

/** config.json of models that the documents plan for; nothing else of them is needed. */
const plannedModels: Record<string, object> = {
  'facebook/opt-175b': {
    model_type: 'opt',
    vocab_size: 50272,
    hidden_size: 12288,
    ffn_dim: 49152,
    num_hidden_layers: 96,
    num_attention_heads: 96,
    max_position_embeddings: 2048,
    torch_dtype: 'float16',
  },
  'bigscience/bloom': {
    model_type: 'bloom',
    vocab_size: 250880,
    hidden_size: 14336,
    n_layer: 70,
    n_head: 112,
    seq_length: 2048,
    torch_dtype: 'bfloat16',
  },
  'meta-llama/Llama-3.1-8B': {
    model_type: 'llama',
    vocab_size: 128256,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    max_position_embeddings: 131072,
    rope_theta: 500000,
    torch_dtype: 'bfloat16',
  },
}

/** A hub on loopback with the models, data sets and tasks that the documents name. */
export async function startHub(): Promise<HubServer> {
  const hub = await HubServer.start()
  const folder = join(await temporaryFolder(), 'model')
  await writeModel(folder)
  const files = Object.fromEntries(
    await Promise.all(
      (await readdir(folder)).map(async (name) => [name, await readFile(join(folder, name))] as const),
    ),
  )
  for (const name of ['facebook/opt-125m', 'HuggingFaceTB/SmolLM2-135M']) hub.add(name, files)
  for (const [name, config] of Object.entries(plannedModels)) {
    hub.add(name, { 'config.json': JSON.stringify(config) })
  }
  const [train, test] = [sentences(800, 1), sentences(600, 2)]
  const wikitext = 'wikitext-2-raw-v1'
  hub.add('datasets/Salesforce/wikitext', {
    [`${wikitext}/train-00000-of-00001.parquet`]: parquet({ text: train }),
    [`${wikitext}/test-00000-of-00001.parquet`]: parquet({ text: test }),
  })
  hub.add('datasets/ptb-text-only/ptb_text_only', {
    'penn_treebank/train/0000.parquet': parquet({ sentence: train }),
    'penn_treebank/test/0000.parquet': parquet({ sentence: test }),
  })
  const documents = Array.from({ length: 20 }, (_, index) =>
    JSON.stringify({ text: sentences(120, index).join(' ') }),
  )
  const c4 = gzipSync(documents.join('\n'))
  hub.add('datasets/allenai/c4', {
    'en/c4-train.00000-of-01024.json.gz': c4,
    'en/c4-validation.00000-of-00008.json.gz': c4,
  })
  const rows = async (task: string, split: string) => {
    const file = join(project, 'test', 'evaluation', 'tasks', task, `${split}.jsonl`)
    const lines = (await readFile(file, 'utf8')).trim().split('\n').slice(0, 8)
    const parsed = lines.map((line) => JSON.parse(line) as Record<string, unknown>)
    return parquet(
      Object.fromEntries(
        Object.keys(parsed[0]!).map((column) => [
          column,
          parsed.map((row) => (typeof row[column] === 'number' ? BigInt(row[column]) : row[column])),
        ]),
      ),
    )
  }
  hub.add('datasets/baber/piqa', {
    'default/validation/0000.parquet': await rows('piqa', 'validation'),
    'default/train/0000.parquet': await rows('piqa', 'train'),
  })
  hub.add('datasets/Rowan/hellaswag', {
    'default/validation/0000.parquet': await rows('hellaswag', 'validation'),
    'default/train/0000.parquet': await rows('hellaswag', 'train'),
  })
  const arc = async (task: string, configuration: string) => ({
    [`${configuration}/test/0000.parquet`]: await rows(task, 'test'),
    [`${configuration}/train/0000.parquet`]: await rows(task, 'train'),
  })
  hub.add('datasets/allenai/ai2_arc', {
    ...(await arc('arc_easy', 'ARC-Easy')),
    ...(await arc('arc_challenge', 'ARC-Challenge')),
  })
  return hub
}

/** What a program has left. */
export interface Ended {
  code: number | null
  /** stdout and stderr, as they came. */
  output: string
}

/**
 * A folder as a reader of a document has it: models, texts, the program on the PATH, the package in node_modules. Nothing
 * outside it is touched, and the hub is the one of the test.
 */
export class World {
  private constructor(
    readonly folder: string,
    private readonly environment: NodeJS.ProcessEnv,
  ) {}

  /** A world with models and texts, and the one without them, where every command ends at the first file it wants. */
  static async make(hub: HubServer, furnished = true): Promise<World> {
    const folder = await temporaryFolder()
    const write = (name: string, text: string) => writeFile(join(folder, name), text)
    if (furnished) {
      for (const name of ['opt-125m', 'SmolLM2-135M']) await writeModel(join(folder, name))
      await mkdir(join(folder, 'opt-175b'))
      await write('opt-175b/config.json', JSON.stringify(plannedModels['facebook/opt-175b']))
      await write('train.txt', sentences(800, 3).join('\n'))
      await write('test.txt', sentences(600, 4).join('\n'))
      const row = (sentence: string) => JSON.stringify({ text: sentence })
      await write('text.jsonl', sentences(800, 5).map(row).join('\n'))
      const talk = (sentence: string) =>
        JSON.stringify({
          messages: [
            { role: 'user', content: sentence },
            { role: 'assistant', content: 'Yes.' },
          ],
        })
      await write('chat.jsonl', sentences(600, 6).map(talk).join('\n'))
    }
    await mkdir(join(folder, 'node_modules'))
    await symlink(project, join(folder, 'node_modules', 'sparsegpt'))
    await symlink(join(project, 'node_modules', '@types'), join(folder, 'node_modules', '@types'))
    await write('package.json', '{ "type": "module" }')
    const bin = join(folder, 'bin')
    await mkdir(bin)
    const program = (name: string, text: string) =>
      writeFile(join(bin, name), `#!/usr/bin/env bash\n${text}\n`).then(() => chmod(join(bin, name), 0o755))
    const main = join(project, 'dist', 'cli', 'main.js')
    await program('sparsegpt', `exec "${process.execPath}" "${main}" "$@"`)
    const tsx = join(project, 'node_modules', '.bin', 'tsx')
    const others = `tsx) exec "${tsx}" "\${@:2}" ;; *) echo "npx $*: unknown" >&2; exit 1 ;;`
    await program('npx', `case "$1" in sparsegpt) exec "$@" ;; ${others} esac`)
    await symlink(join(project, 'examples'), join(folder, 'examples'))
    const { HF_TOKEN: _token, ...inherited } = process.env
    return new World(folder, {
      ...inherited,
      PATH: `${bin}:${dirname(process.execPath)}:/usr/bin:/bin`,
      HOME: folder,
      HF_ENDPOINT: hub.url,
      HF_HOME: join(folder, '.cache', 'huggingface'),
      HF_HUB_OFFLINE: '',
      NO_COLOR: '1',
      NODE_OPTIONS: '',
    })
  }

  /** Runs a program in this folder. */
  run(command: string, args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Ended> {
    return new Promise((resolve, reject) => {
      const child = spawn(command, args, {
        cwd: this.folder,
        env: { ...this.environment, ...environment },
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      let output = ''
      for (const stream of [child.stdout, child.stderr]) {
        stream.setEncoding('utf8').on('data', (text: string) => (output += text))
      }
      child.on('error', reject)
      child.on('close', (code) => resolve({ code, output }))
    })
  }
}
