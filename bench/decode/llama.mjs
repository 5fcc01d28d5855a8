#!/usr/bin/env node
// Continues token ids with llama.cpp, one token at a time and always with the likeliest. Prints one JSON object: tokensPerSecond,
// of the tokens after the first one, and tokenIds.
//
//   node llama.mjs FILE.gguf '{ "prompt": [1, 2, 3], "tokens": 64, "threads": 2 }'

import { getLlama } from 'node-llama-cpp'

const [modelPath, request] = process.argv.slice(2)
const { prompt, tokens, threads } = JSON.parse(request)
// The binary that npm has installed, and nothing else.
const llama = await getLlama({
  ...{ gpu: false, build: 'never', skipDownload: true, progressLogs: false, logLevel: 'error' },
  maxThreads: threads,
})
const model = await llama.loadModel({ modelPath, gpuLayers: 0 })
const context = await model.createContext({
  ...{ contextSize: prompt.length + tokens + 1, sequences: 1 },
  threads: { ideal: threads, min: threads },
})
const sequence = context.getSequence()

async function next(ids) {
  const last = [ids.at(-1), { generateNext: { token: true, options: { temperature: 0 } } }]
  const results = await sequence.controlledEvaluate([...ids.slice(0, -1), last])
  return results.at(-1).next.token
}

const tokenIds = [await next(prompt)]
const start = performance.now()
while (tokenIds.length <= tokens) tokenIds.push(await next(tokenIds.slice(-1)))
const seconds = (performance.now() - start) / 1000
console.log(JSON.stringify({ tokensPerSecond: tokens / seconds, tokenIds }))
await llama.dispose()
