// Every code block of README, docs and examples: shell commands run, TypeScript is checked and run, what is quoted from the
// sources stands there. A block that cannot run here says why (`no-run="needs a GPU"`); its commands are parsed all the same.

import { existsSync, readFileSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import ts from 'typescript'
import { parse as parseYaml } from 'yaml'
import type { HubServer } from '../hub/hub-server.js'
import { temporaryFolder } from '../temporary.js'
import { blocksOf, documents, project, type Block } from './blocks.js'
import { startHub, World } from './world.js'

const languages = ['sh', 'ts', 'js', 'json', 'yaml', 'python', 'text']
/** Programs that the documents name and that are not ours, and those that CMake makes of our sources. */
const others = [
  ...['npm', 'apt-get', 'pip', 'python', 'cmake', 'vllm', 'curl', 'redis-server', 'taskset'],
  ...['sparsegpt_bench', 'sparsegpt_cuda_bench'],
]
const { scripts } = JSON.parse(readFileSync(join(project, 'package.json'), 'utf8')) as {
  scripts: Record<string, string>
}

let hub: HubServer
/** Where nothing is: what a command needs besides its options is missing. */
let nowhere: World

beforeAll(async () => {
  hub = await startHub()
  nowhere = await World.make(hub, false)
})
afterAll(() => hub.stop())

for (const document of documents) {
  const blocks = blocksOf(document)
  if (blocks.length === 0) continue
  describe(document, () => {
    let world: World
    let checked: Map<Block, Checked>
    beforeAll(async () => {
      world = await World.make(hub)
      checked = await checkTypeScript(blocks.filter(isTypeScript))
    })
    test.each(blocks.map((block) => [block.place, block] as const))('%s', async (_place, block) => {
      const { language, marks, code } = block
      expect(languages).toContain(language)
      if (marks['from'] !== undefined) expectExcerpt(code, marks['from'])
      else if (language === 'sh' && marks['no-run'] === undefined) {
        await runs(world, 'bash', ['-euo', 'pipefail', '-c', code])
      } else if (language === 'sh') await expectParses(code)
      else if (isTypeScript(block)) {
        const { problems, program } = checked.get(block)!
        expect(problems).toEqual([])
        if (marks['no-run'] === undefined) await runProgram(program)
      } else if (language === 'json') JSON.parse(code)
      else if (language === 'yaml') await expectJobParses(code)
      else if (language === 'python') {
        await runs(nowhere, 'python3', ['-c', 'import ast, sys; ast.parse(sys.argv[1])', code])
      }
      if (marks['file'] !== undefined) await writeFile(join(world.folder, marks['file']), code)
    })
  })
}

async function runs(world: World, command: string, args: readonly string[]): Promise<void> {
  const { code, output } = await world.run(command, args)
  if (code !== 0) throw new Error(`exit code ${String(code)}:\n${output}`)
}

/** What the compiler checks: TypeScript, and JavaScript that runs here, with what it imports. */
const isTypeScript = ({ language, marks }: Block) =>
  (language === 'ts' || (language === 'js' && marks['no-run'] === undefined)) && marks['from'] === undefined

interface Checked {
  /** What the compiler says against the block. */
  problems: string[]
  /** The block as JavaScript. */
  program: string
}

/** Compiles blocks as strict modules of a user who has installed the package. */
async function checkTypeScript(blocks: readonly Block[]): Promise<Map<Block, Checked>> {
  if (blocks.length === 0) return new Map()
  const { folder } = await World.make(hub)
  const files = blocks.map((_, index) => join(folder, `block-${index}.ts`))
  await Promise.all(files.map((file, index) => writeFile(file, `export {}\n${blocks[index]!.code}`)))
  const options: ts.CompilerOptions = {
    strict: true,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: ['node'],
    typeRoots: [join(project, 'node_modules', '@types')],
    skipLibCheck: true,
    noEmitOnError: false,
  }
  const program = ts.createProgram(files, options)
  const emitted = new Map<string, string>()
  program.emit(undefined, (name, text) => emitted.set(name, text))
  const checked = blocks.map((block, index): [Block, Checked] => {
    const source = program.getSourceFile(files[index]!)
    const problems = ts.getPreEmitDiagnostics(program, source).map(({ messageText, start }) => {
      const line = source && start !== undefined ? source.getLineAndCharacterOfPosition(start).line : 0
      return `line ${line}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`
    })
    return [block, { problems, program: emitted.get(files[index]!.replace(/ts$/, 'js')) ?? '' }]
  })
  return new Map(checked)
}

/** Runs a program in a world of its own, where its output folders are not there yet. */
async function runProgram(program: string): Promise<void> {
  const own = await World.make(hub)
  await writeFile(join(own.folder, 'block.js'), program)
  await runs(own, process.execPath, ['block.js'])
}

const withoutIndent = (line: string) => line.trim()

/** The lines of an excerpt stand in the file, one after the other, whatever their indent. */
function expectExcerpt(code: string, file: string): void {
  const source = readFileSync(join(project, file), 'utf8').split('\n').map(withoutIndent).join('\n')
  // An empty line parts two excerpts.
  for (const part of code.trim().split(/\n\s*\n/)) {
    expect(source).toContain(part.split('\n').map(withoutIndent).join('\n'))
  }
}

/** The commands of a shell script, as bash reads them; none of them runs. */
async function commandsOf(code: string): Promise<string[][]> {
  const folder = await temporaryFolder()
  const file = join(folder, 'commands')
  // With an empty PATH every command comes to this function.
  const record = `command_not_found_handle() { printf '%s\\0' "$@" >> "${file}"; printf '\\n\\0' >> "${file}"; }\n`
  const empty = join(folder, 'empty')
  await mkdir(empty)
  // A path is no command that bash would not find.
  const named = code.replaceAll('build/native-tests/', '')
  const { code: status, output } = await nowhere.run('/bin/bash', ['-c', record + named], { PATH: empty })
  if (status !== 0) throw new Error(output)
  const words = readFileSync(file, 'utf8').split('\0').slice(0, -1)
  const commands: string[][] = [[]]
  for (const word of words) {
    if (word === '\n') commands.push([])
    else commands.at(-1)!.push(word)
  }
  return commands.filter((command) => command.length > 0)
}

/** Every command is one that exists, and takes its options. */
async function expectParses(code: string): Promise<void> {
  for (const command of await commandsOf(code)) {
    const [program = '', first = '', second = ''] = command
    const at = command.indexOf('sparsegpt')
    const launched = ['sparsegpt', 'mpirun', 'srun', 'npx'].includes(program)
    if (launched && at >= 0) await expectAccepts(command.slice(at + 1))
    else if (program === 'npm' && first !== 'install') {
      expect(Object.keys(scripts)).toContain(first === 'run' ? second : first)
    } else if (program === 'node') expectScriptKnows(first, command.slice(2))
    else if (program === 'npx' && first === 'tsx') expect(existsSync(join(project, second))).toBe(true)
    else expect(others).toContain(program)
  }
}

/** The options that a command of `sparsegpt` lists. */
const listed = new Map<string, Promise<string>>()

/** The program takes these arguments: it fails, if it does, for the model or the device that is not there. */
async function expectAccepts(args: readonly string[]): Promise<void> {
  const name = args.slice(0, args[0] === 'bench' && args[1] === 'decode' ? 2 : 1).join(' ')
  const help =
    listed.get(name) ?? nowhere.run('sparsegpt', [...name.split(' '), '--help']).then(({ output }) => output)
  listed.set(name, help)
  for (const flag of args.filter((word) => word.startsWith('--'))) {
    expect(await help).toMatch(new RegExp(`${flag.replace(/=.*/, '')}\\b`))
  }
  if (args[0] === 'bench') return
  // How many ranks there are is known only where a launcher has started them.
  const ranks = args.indexOf('--ranks')
  const alone = ranks >= 0 && args[0] !== 'plan' ? args.toSpliced(ranks, 2) : args
  const { code, output } = await nowhere.run('sparsegpt', alone, {
    HF_HUB_OFFLINE: '1',
    HF_HOME: join(nowhere.folder, 'empty-cache'),
  })
  if (code !== 0 && code !== 1)
    throw new Error(`sparsegpt ${alone.join(' ')}: exit code ${String(code)}:\n${output}`)
}

/** A script of the project is there, and its source names the options. */
function expectScriptKnows(script: string, args: readonly string[]): void {
  expect([script, existsSync(join(project, script))]).toEqual([script, true])
  const own = readFileSync(join(project, script), 'utf8')
  const shared = readFileSync(join(project, 'bench', 'frame.mjs'), 'utf8')
  for (const flag of args.filter((word) => word.startsWith('--'))) {
    const name = flag.slice(2).replace(/=.*/, '')
    expect(own + shared).toMatch(new RegExp(`['"]?${name}['"]?: \\{|--${name}\\b`))
  }
}

/** A Kubernetes job whose command is a list of words with sparsegpt among them. */
async function expectJobParses(code: string): Promise<void> {
  const commands: string[][] = []
  const search = (value: unknown): void => {
    if (Array.isArray(value) && value.includes('sparsegpt')) commands.push(value as string[])
    else if (typeof value === 'object' && value !== null) Object.values(value).forEach(search)
  }
  search(parseYaml(code))
  expect(commands).not.toEqual([])
  for (const command of commands) await expectAccepts(command.slice(command.indexOf('sparsegpt') + 1))
}
