import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'

// What is published is dist: `npm test` builds it first.
const repository = fileURLToPath(new URL('../..', import.meta.url))
const entry = join(repository, 'dist/index.d.ts')

/** What TypeScript says of some modules that use the package, by the module's name; declaration files are checked, too. */
async function problems(sources: Record<string, string>): Promise<Record<string, string[]>> {
  const folder = await temporaryFolder()
  for (const [name, source] of Object.entries(sources)) await writeFile(join(folder, `${name}.mts`), source)
  const compilerOptions = {
    ...{ strict: true, noEmit: true, exactOptionalPropertyTypes: true },
    ...{ target: 'ES2022', module: 'NodeNext', moduleResolution: 'NodeNext', types: ['node'] },
    typeRoots: [join(repository, 'node_modules/@types')],
    paths: { sparsegpt: [entry] },
  }
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, include: ['*.mts'] }))
  const tsc = join(repository, 'node_modules/typescript/bin/tsc')
  const { stdout } = spawnSync(process.execPath, [tsc, '-p', folder, '--pretty', 'false'], {
    encoding: 'utf8',
  })
  const lines = stdout.split('\n').filter((line) => line.includes(': error TS'))
  const names = Object.keys(sources)
  const others = lines.filter((line) => !names.some((name) => line.includes(`${name}.mts(`)))
  return {
    ...Object.fromEntries(names.map((name) => [name, lines.filter((line) => line.includes(`${name}.mts(`))])),
    others,
  }
}

/** The modules that a declaration file imports. */
const importedBy = (file: string): string[] =>
  [...readFileSync(file, 'utf8').matchAll(/\b(?:from|import)[ (]*['"]([^'"]+)['"]/g)].map(([, name]) => name!)

/** The declaration files that the package's types are made of. */
function declarations(): string[] {
  const files = new Set<string>()
  const visit = (file: string) => {
    if (files.has(file)) return
    files.add(file)
    for (const name of importedBy(file))
      if (name.startsWith('.')) visit(join(dirname(file), name.replace(/\.js$/, '.d.ts')))
  }
  visit(entry)
  return [...files]
}

describe('the published types', () => {
  test('are those of the package alone: zod is not among them', () => {
    const files = declarations()
    expect(files.length).toBeGreaterThan(20)
    for (const file of files) {
      expect([file, importedBy(file).filter((name) => !/^(\.|node:)/.test(name))]).toEqual([file, []])
      expect([file, readFileSync(file, 'utf8')]).toEqual([file, expect.not.stringMatching(/\bzod\b|\bz\./)])
    }
  })

  test('what is right compiles, what is wrong is told in its line', async () => {
    const head = `import { benchmark, generate, inspect, loadModel, pack, plan, prune, pruneLayer, type PruneOptions, type PruningMethod } from 'sparsegpt'
await using model = await loadModel(new URL('file:///model'))
const calibration = { dataset: 'c4' } as const
`
    const right = `await prune(model, { calibration })
await prune(model, { calibration, sparsity: 0.5, allocation: 'owl' })
await prune(model, { calibration, pattern: '2:4', out: new URL('file:///out') })
await prune(model, { calibration, schedule: [0.5, 0.6], quality: 'good' })
await prune(model, { calibration, mask: 'mask.safetensors' })
await prune(model, { calibration, allocation: { default: { pattern: '2:4' } } })
await prune(model, { method: 'magnitude', pattern: '2:4' })
for await (const { fraction } of prune(model, { calibration })) fraction.toFixed()
const method: PruningMethod = (await prune(model, { calibration })).method
const later: PruneOptions = { calibration }
await plan('model', { pattern: '2:4' })
await pack(model, { out: 'packed' }).then(({ bytes }) => bytes.after)
await inspect('model').then(({ sparsity }) => sparsity)
await benchmark({ table: 'solver' })
await generate(model, 'Once').result.then(({ text }) => text)
await model.save('saved', { encoding: 'bitmask' })
export { later, method, pruneLayer }
`
    const wrong = `await prune(model, {})
await prune(model, { sparsity: 0.5 })
await prune(model, { calibration, sparsity: 0.5, pattern: '2:4' })
await prune(model, { calibration, mask: 'mask.safetensors', pattern: '2:4' })
await prune(model, { calibration, schedule: [0.5], sparsity: 0.5 })
await prune(model, { calibration, pattern: '2:4', allocation: 'owl' })
await prune(model, { method: 'magnitude', reconstruct: true })
await prune(model, { method: 'wandas', calibration })
await plan('model', { pattern: '2:4', schedule: [0.5] })
const layer = { weight: new Float32Array(4), rows: 2, columns: 2 }
await pruneLayer({ ...layer, sparsity: 0.5, mask: new Uint8Array(4) })
`
    const tail = 'export { benchmark, generate, inspect, pack }\n'
    const found = await problems({ right: head + right, wrong: head + wrong + tail })
    expect(found).toMatchObject({ right: [], others: [] })
    const lines = found['wrong']!.map((line) => Number(/\((\d+),/.exec(line)?.[1]))
    expect(lines).toEqual([4, 5, 6, 7, 8, 9, 10, 11, 12, 14])
  })
})
