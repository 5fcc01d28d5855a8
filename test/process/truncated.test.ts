import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'
import { packageUrl, runScript } from './child.js'

/** Loads a model whose file then loses all but its first page, and tells the error of `use`. */
async function truncated(use: string) {
  const folder = await temporaryFolder()
  const model = await writeTinyModel(join(folder, 'model'))
  const out = join(folder, 'outputs')
  await mkdir(out)
  const ended = await runScript(`
    import { truncateSync } from 'node:fs'
    import { loadModel, prune, perplexity } from ${JSON.stringify(packageUrl)}
    const tokens = [${randomTokens(600).join()}]
    const out = ${JSON.stringify(join(out, 'out'))}
    const model = await loadModel(${JSON.stringify(model)}, { device: 'cpu', threads: 2 })
    const truncate = () => truncateSync(${JSON.stringify(join(model, 'model.safetensors'))}, 4096)
    const use = async () => { ${use} }
    await use().then(() => console.log('done'), ({ name, code, message }) => console.log(name, code, message))
    await model.dispose()
  `)
  return { ...ended, left: await readdir(out) }
}

const typed = {
  code: 0,
  signal: null,
  stderr: '',
  left: [],
  stdout: expect.stringMatching(
    /^SparseGptError INVALID_CHECKPOINT .*model\.safetensors( became shorter|: a tensor reaches beyond the end)/,
  ),
}

test('a model whose file becomes shorter before it is used', async () => {
  expect(await truncated('truncate(); await model.logits([[1, 2, 3]])')).toMatchObject(typed)
  expect(
    await truncated('truncate(); await perplexity(model, { tokens, sequenceLength: 32 })'),
  ).toMatchObject(typed)
})

test('a model whose file becomes shorter while it is pruned', async () => {
  const calibration = 'calibration: { tokens, samples: 64, sequenceLength: 32 }'
  const onProgress = 'onProgress: () => truncate()'
  expect(await truncated(`await prune(model, { out, ${onProgress}, ${calibration} })`)).toMatchObject(typed)
  expect(await truncated(`await prune(model, { out, ${onProgress}, method: 'magnitude' })`)).toMatchObject(
    typed,
  )
  expect(await truncated(`await prune(model, { ${onProgress}, ${calibration} })`)).toMatchObject(typed)
})
