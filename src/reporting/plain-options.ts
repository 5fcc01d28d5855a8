import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { allocationNames } from '../pruning/allocation/names.js'

/** Options whose values are paths. */
const paths = ['file', 'mask', 'offload', 'out', 'saveTokens', 'data']
/** What holds a text, or token ids, itself. */
const contents = ['text', 'messages', 'tokens', 'windows']

/** A regular expression in JSON. */
export interface PlainRegExp {
  source: string
  flags: string
}

/**
 * Options as JSON holds them: without functions and signals, with absolute paths, a recipe's file as what is in it. A text that was handed over in
 * memory is left out; `inMemory` then names it.
 */
export async function plainOptions(
  options: object,
): Promise<{ plain: Record<string, unknown>; inMemory?: string }> {
  const plain: Record<string, unknown> = {}
  let inMemory: string | undefined
  for (const [name, value] of Object.entries(options) as [string, unknown][]) {
    if (name === 'allocation' && typeof value === 'string') plain[name] = await allocationOf(value)
    else if (name === 'dense' && typeof value === 'string') plain[name] = modelOf(value)
    else if (['calibration', 'text'].includes(name) && typeof value === 'object' && value !== null) {
      const text = textOptions(value)
      plain[name] = text.plain
      inMemory = text.inMemory
    } else plain[name] = plainValue(name, value)
  }
  return { plain: withoutUndefined(plain), ...(inMemory !== undefined && { inMemory }) }
}

/** A recipe's file is read, as it may have changed when the report is. One that cannot be read any more stays a path. */
async function allocationOf(value: string): Promise<unknown> {
  if ((allocationNames as readonly string[]).includes(value)) return value
  try {
    return JSON.parse(await readFile(value, 'utf8')) as unknown
  } catch {
    return resolve(value)
  }
}

const modelOf = (value: string) => (existsSync(value) ? resolve(value) : value)

/** The options of a source of text; `inMemory` names what holds the text itself. */
export function textOptions(source: object): {
  plain: Record<string, unknown>
  inMemory?: string | undefined
} {
  const inMemory = contents.find((name) => name in source && Reflect.get(source, name) !== undefined)
  const plain = Object.entries(source).map(([name, value]: [string, unknown]): [string, unknown] => {
    if (contents.includes(name)) return [name, undefined]
    if (name !== 'sources' || !Array.isArray(value)) return [name, plainValue(name, value)]
    return [name, value.map((each: object) => textOptions(each).plain)]
  })
  const sources: unknown = Reflect.get(source, 'sources')
  const within = Array.isArray(sources)
    ? sources.map((each: object) => textOptions(each).inMemory).find((name) => name !== undefined)
    : undefined
  return { plain: withoutUndefined(Object.fromEntries(plain)), inMemory: inMemory ?? within }
}

function plainValue(name: string, value: unknown): unknown {
  if (typeof value === 'string') return paths.includes(name) ? resolve(value) : value
  if (value instanceof RegExp) return { source: value.source, flags: value.flags } satisfies PlainRegExp
  if (Array.isArray(value)) return value.map((each) => plainValue(name, each))
  if (name === 'pattern' && typeof value === 'object' && value !== null) {
    const { n, m } = value as { n: number; m: number }
    return `${n}:${m}`
  }
  if (typeof value !== 'object' || value === null)
    return ['boolean', 'number'].includes(typeof value) ? value : undefined
  // What is of a class, such as an AbortSignal, is no option of the result.
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) return undefined
  return withoutUndefined(
    Object.fromEntries(
      Object.entries(value).map(([key, inner]: [string, unknown]) => [key, plainValue(key, inner)]),
    ),
  )
}

const withoutUndefined = (options: Record<string, unknown>) =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
