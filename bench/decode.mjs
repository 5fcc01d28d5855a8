#!/usr/bin/env node
// Generation one token at a time beside that of llama.cpp on GGUF files of the same weights, on as many threads, in turn. A row says also
// how many tokens it begins with that we choose too. `npm install --prefix bench/decode` installs llama.cpp.
//
//   node bench/decode.mjs --model DIR [--packed DIR,DIR] [--types bf16,q8_0,q4_0] [--tokens 64] [--gguf DIR] [--python BIN]
//       [--threads N] [--repeats 5]
//
// --model: a dense LLaMA model, pruned or not, with a tokenizer or without; --packed: the same model as `sparsegpt pack` writes it. BIN is a
// Python with the package gguf of PyPI. The GGUF files stay in --gguf, where the next run finds them. The machine must have nothing
// else to do: llama.cpp's threads wait for each other without sleeping, and on a busy core take many times as long.

import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { basename, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadTokenizer } from '../dist/text/tokenizer.js'
import { median, parseOptions, printTable, temporaryFolder } from './frame.mjs'

const text = { type: 'string' }
const options = parseOptions({
  ...{ model: text, packed: text, gguf: text },
  types: { type: 'string', default: 'bf16,q8_0,q4_0' },
  tokens: { type: 'string', default: '64' },
})
if (!options.model) throw new Error('--model DIR is missing')
const tokens = Number(options.tokens)
if (!(Number.isInteger(tokens) && tokens >= 1)) throw new Error(`--tokens ${options.tokens} is no count`)
const threads = options.threads || availableParallelism()
const model = resolve(options.model)

const here = (file) => fileURLToPath(new URL(`decode/${file}`, import.meta.url))

/** The path of the model's GGUF file, which is written unless there is one that is newer than the model. */
function gguf(folder, type) {
  const id = createHash('sha256').update(model).digest('hex').slice(0, 8) // other models may have the same name
  const file = join(folder, `${basename(model)}-${id}-${type}.gguf`)
  const time = (path) => statSync(path).mtimeMs
  const sources = readdirSync(model).filter((name) => /\.safetensors$|^config\.json$/.test(name))
  if (!existsSync(file) || sources.some((name) => time(join(model, name)) > time(file))) {
    process.stderr.write(`writing ${basename(file)}\n`)
    execFileSync(options.python, [here('write_gguf.py'), model, file, type], { stdio: 'inherit' })
  }
  return file
}

async function promptIds() {
  if (!existsSync(join(model, 'tokenizer.json'))) return [5, 6, 7, 8]
  return [...(await (await loadTokenizer(model)).encode('Once upon a time'))]
}

/** What one of the two programs says, run once in a process of its own. */
function run(script, path, request) {
  const args = [here(script), path, JSON.stringify(request)]
  return JSON.parse(
    execFileSync(process.execPath, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }),
  )
}

/** { tokensPerSecond, tokenIds } of our own. */
const ours = (folder, request) => run('ours.mjs', folder, request)
const theirs = (file, request) => run('llama.mjs', file, request)

const folder = options.gguf ?? temporaryFolder()
mkdirSync(folder, { recursive: true })
const request = { prompt: await promptIds(), tokens, threads }
const files = options.types.split(',').map((type) => ({ type: type.toUpperCase(), file: gguf(folder, type) }))
const rows = [
  { name: 'sparsegpt, bfloat16', run: () => ours(model, request) },
  ...(options.packed?.split(',') ?? []).map((path) => ({
    name: `sparsegpt, packed: ${basename(path)}`,
    run: () => ours(path, request),
  })),
  ...files.map(({ type, file }) => ({ name: `llama.cpp, ${type}`, run: () => theirs(file, request) })),
]

const results = rows.map(() => [])
for (let repeat = 0; repeat < options.repeats; repeat++) {
  for (const [i, row] of rows.entries()) {
    const result = row.run()
    process.stderr.write(`${row.name}: ${result.tokensPerSecond.toFixed(1)} tokens/s\n`)
    results[i].push(result)
  }
}

const speeds = results.map((list) => median(list.map(({ tokensPerSecond }) => tokensPerSecond)))
const chosen = results.map(([{ tokenIds }]) => tokenIds)
const alike = (ids) => {
  const first = ids.findIndex((id, i) => id !== chosen[0][i])
  return first < 0 ? ids.length : first
}
const llama = rows.length - files.length
printTable(
  [
    `${basename(model)}, ${tokens} tokens, ${threads} threads`,
    'tokens/s',
    ...files.map(({ type }) => `of llama.cpp's ${type}`),
    'chosen alike',
  ],
  rows.map(({ name }, i) => [
    name,
    speeds[i].toFixed(1),
    ...files.map((_, j) => `${(speeds[i] / speeds[llama + j]).toFixed(2)} ×`),
    alike(chosen[i]),
  ]),
)
