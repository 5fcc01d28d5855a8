import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { InvalidArgumentError, Option, type Command } from 'commander'
import { SparseGptError } from '../errors.js'
import { readError, reason } from '../files/read-error.js'
import { readRegularFile } from '../files/regular-file.js'
import { quoted } from '../quoted.js'

/** The file that is read from the working directory where no other is named. */
const usual = 'sparsegpt.config.json'
const maxBytes = 2 ** 20

/** Flags of which only one can hold: where one is typed, the file's others do not. */
const alternatives = ['sparsity', 'pattern', 'schedule', 'mask']

/** Adds `--config` to a command. */
export function configOption(command: Command): void {
  command.addOption(
    new Option(
      '--config <file>',
      `options in a file, .json or .js, by the names of the flags (default: ${usual} if it is there)`,
    ),
  )
}

/**
 * Gives the command that `args` name the options of the configuration file, which flags that are typed go before. The file has an
 * object: options by the names of flags in camel case, and under the name of a command those for it alone, which go first. Of the
 * options outside of commands each command takes those that it has. Returns the file, where it has given the command an option. Throws
 * FILE_NOT_FOUND, INVALID_OPTION.
 */
export async function applyConfig(program: Command, args: readonly string[]): Promise<string | undefined> {
  const command = commandOf(program, args)
  if (!command) return undefined
  const named = typed(args, '--config')
  const file = resolve(named ?? usual)
  // A job is repeated as it was, wherever that is done.
  if (named === undefined && (!existsSync(file) || isTyped(args, '--recipe'))) return undefined
  const contents = await readConfig(file)
  const commands = program.commands.flatMap((each) => [each, ...each.commands])
  const names = new Set(program.commands.map((each) => each.name()))
  const own = contents[path(command)[0]!] ?? {}
  if (!isMap(own)) throw invalid(file, `${command.name()}: must be an object with options`)
  const [shared, inner] = [contents, own].map((from) => new Map(Object.entries(from)))
  for (const name of names) shared!.delete(name)
  for (const name of shared!.keys()) {
    const known = commands.some((each) => optionOf(each, name))
    if (!known) throw invalid(file, `${name}: there is no such option or command`)
  }
  const typedAlternative = alternatives.some((name) => optionOf(command, name) && isTyped(args, `--${name}`))
  let taken = false
  for (const [name, value] of new Map([...shared!, ...inner!])) {
    const option = optionOf(command, name)
    if (!option) {
      if (inner!.has(name))
        throw invalid(file, `${command.name()}.${name}: ${command.name()} has no such option`)
      continue
    }
    if (isTyped(args, option.long ?? '') || (typedAlternative && alternatives.includes(name))) continue
    command.setOptionValueWithSource(name, valueOf(option, value, `${file}: ${name}`), 'config')
    taken = true
  }
  return taken ? file : undefined
}

/** The subcommand that the arguments call. */
function commandOf(program: Command, args: readonly string[]): Command | undefined {
  const first = program.commands.find((each) => each.name() === args[0])
  return first?.commands.find((each) => each.name() === args[1]) ?? first
}

const path = (command: Command): string[] =>
  command.parent?.parent ? [...path(command.parent), command.name()] : [command.name()]

const optionOf = (command: Command, name: string) =>
  command.options.find((option) => option.attributeName() === name && name !== 'config')

const isTyped = (args: readonly string[], flag: string) =>
  args.some((arg) => arg === flag || arg.startsWith(`${flag}=`))

/** The value that was typed for a flag. */
function typed(args: readonly string[], flag: string): string | undefined {
  const at = args.findIndex((arg) => arg === flag || arg.startsWith(`${flag}=`))
  return args[at]?.startsWith(`${flag}=`) ? args[at].slice(flag.length + 1) : args[at + 1 || args.length]
}

async function readConfig(file: string): Promise<Record<string, unknown>> {
  if (!/\.(json|[cm]?js)$/.test(file))
    throw invalid(file, 'a configuration is a .json file, or a .js, .mjs or .cjs file that exports one')
  const value = file.endsWith('.json') ? await parsed(file) : await imported(file)
  if (!isMap(value)) throw invalid(file, 'must hold an object with options')
  return value
}

async function parsed(file: string): Promise<unknown> {
  const bytes = await readRegularFile(file, { advice: 'give an existing configuration file', maxBytes })
  try {
    // Without the mark that some editors put at the start.
    return JSON.parse(bytes.toString('utf8').replace(/^\uFEFF/, '')) as unknown
  } catch (cause) {
    throw new SparseGptError('INVALID_OPTION', `${file} is not valid JSON: ${reason(cause)}`, { cause })
  }
}

/** What a module exports by default. A module is run, and so only where it is named with `--config`. */
async function imported(file: string): Promise<unknown> {
  if (!existsSync(file)) {
    throw readError({ code: 'ENOENT' }, file, 'give an existing configuration file')
  }
  try {
    return ((await import(pathToFileURL(file).href)) as { default?: unknown }).default
  } catch (cause) {
    throw new SparseGptError('INVALID_OPTION', `${file} cannot be loaded: ${reason(cause)}`, { cause })
  }
}

/** The value as the option makes it of what is typed. Throws INVALID_OPTION. */
function valueOf(option: Option, value: unknown, subject: string): unknown {
  if (typeof value === 'boolean' && (option.isBoolean() || option.optional || option.negate))
    return value || undefined
  const texts = (Array.isArray(value) ? value : [value]) as unknown[]
  const isOne = option.parseArg === undefined && Array.isArray(value)
  if (
    isOne ||
    option.isBoolean() ||
    texts.some((text) => typeof text !== 'string' && typeof text !== 'number')
  ) {
    throw new SparseGptError('INVALID_OPTION', `${subject}: ${option.flags} cannot be ${quoted(value)}`)
  }
  try {
    const parse = option.parseArg ?? ((text: string) => text)
    let result: unknown
    for (const text of texts) result = parse(String(text), result as never)
    return result
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error
    throw new SparseGptError('INVALID_OPTION', `${subject}: ${error.message} (given: ${quoted(value)})`)
  }
}

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

const invalid = (file: string, message: string) => new SparseGptError('INVALID_OPTION', `${file}: ${message}`)
