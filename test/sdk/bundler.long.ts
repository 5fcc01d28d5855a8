import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { writeTinyModel } from '../tiny-model.js'

const repository = fileURLToPath(new URL('../..', import.meta.url))

/** The block of docs/bundlers.md that begins with the name of a file. */
async function documented(file: string): Promise<string> {
  const text = await readFile(join(repository, 'docs/bundlers.md'), 'utf8')
  return new RegExp('```js[^\\n]*\\n(// ' + file.replaceAll('.', '\\.') + '\\n.*?)```', 's').exec(text)![1]!
}

/** A project that has installed the package and a bundler. */
async function project(): Promise<string> {
  const folder = await temporaryFolder()
  await mkdir(join(folder, 'node_modules'))
  await symlink(repository, join(folder, 'node_modules/sparsegpt'))
  await symlink(join(repository, 'node_modules/esbuild'), join(folder, 'node_modules/esbuild'))
  return folder
}

const run = (folder: string, file: string, ...args: string[]) =>
  spawnSync(process.execPath, [join(folder, file), ...args], { cwd: folder, encoding: 'utf8' })

test('the documented esbuild configuration makes a bundle that works', async () => {
  const folder = await project()
  const model = await writeTinyModel(join(folder, 'model'))
  const app = `import { inspect, loadModel, prune } from 'sparsegpt'
const model = await loadModel(process.argv[2]!, { device: 'cpu', threads: 1 })
await prune(model, { method: 'magnitude', pattern: '2:4', out: process.argv[3]! })
const [ids] = [(await model.tokenizer()).encode('w1 w2')]
console.log((await inspect(process.argv[3]!)).kinds.at(-2)!.sparsity, [...await ids])
await model.dispose()
`
  await writeFile(join(folder, 'app.ts'), app)
  await writeFile(join(folder, 'esbuild.config.mjs'), await documented('esbuild.config.mjs'))
  expect(run(folder, 'esbuild.config.mjs')).toMatchObject({ status: 0, stderr: '' })
  expect((await stat(join(folder, 'app.mjs'))).size).toBeLessThan(2000)
  const { stdout, stderr } = run(folder, 'app.mjs', model, join(folder, 'out'))
  expect({ stdout, stderr }).toEqual({ stdout: '0.5 [ 1, 2 ]\n', stderr: '' })
  expect(existsSync(join(folder, 'out/model.safetensors'))).toBe(true)
})

test('what is imported for its types alone leaves nothing in a bundle', async () => {
  const folder = await project()
  // Without `external`, package.json's sideEffects says what may be left out.
  const source = `import { SparseGptError } from 'sparsegpt'
export const isOurs = (error) => error?.name === 'SparseGptError'
`
  await writeFile(join(folder, 'app.js'), source)
  const script = `import { build } from 'esbuild'
await build({ entryPoints: ['app.js'], outfile: 'out.mjs', bundle: true, platform: 'node', format: 'esm', packages: 'bundle', logLevel: 'error' })
`
  await writeFile(join(folder, 'build.mjs'), script)
  expect(run(folder, 'build.mjs')).toMatchObject({ status: 0, stderr: '' })
  expect((await stat(join(folder, 'out.mjs'))).size).toBeLessThan(1000)
})
