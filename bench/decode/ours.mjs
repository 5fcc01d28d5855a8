#!/usr/bin/env node
// Continues token ids as llama.mjs does, with this package in bfloat16 on the CPU. Prints the same JSON object.
//
//   node ours.mjs DIR '{ "prompt": [1, 2, 3], "tokens": 64, "threads": 2 }'

import { Decoder } from '../../dist/generation/decoder.js'
import { ResidentModel } from '../../dist/generation/resident-model.js'
import { chooseToken } from '../../dist/generation/sampling.js'
import { loadModel } from '../../dist/index.js'
import { engineOf } from '../../dist/sdk/model.js'

const [folder, request] = process.argv.slice(2)
const { prompt, tokens, threads } = JSON.parse(request)
const model = await loadModel(folder, { device: 'cpu', dtype: 'bfloat16', threads })
const engine = engineOf(model)
// Not model.generate: that needs a tokenizer, and ends at an end-of-sequence token.
const result = await engine.job(undefined, async (signal) => {
  const weights = await ResidentModel.load(engine, 1)
  const decoder = new Decoder(weights, 1, prompt.length + tokens + 1)
  const ids = [...prompt]
  const next = async () => ids.push(chooseToken(await decoder.logits([ids], signal), { temperature: 0 }))
  try {
    await next()
    const start = performance.now()
    while (ids.length <= prompt.length + tokens) await next()
    const seconds = (performance.now() - start) / 1000
    return { tokensPerSecond: tokens / seconds, tokenIds: ids.slice(prompt.length) }
  } finally {
    decoder.dispose()
    weights.dispose()
  }
})
console.log(JSON.stringify(result))
await model.dispose()
