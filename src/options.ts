import { fileURLToPath } from 'node:url'
import * as z from 'zod'
import { SparseGptError } from './errors.js'

/** A path, or a `file:` URL, which stands for one. */
export type PathOrUrl = string | URL

/**
 * Validates a PathOrUrl, and gives the path as the system takes it.
 *
 * @internal
 */
export const path = z.preprocess(
  (value, context) => {
    if (!(value instanceof URL)) return value
    try {
      return fileURLToPath(value)
    } catch (error) {
      const message = `must be a path or a file: URL: ${(error as Error).message}`
      context.issues.push({ code: 'custom', input: value, message })
      return z.NEVER
    }
  },
  z
    .string()
    .min(1)
    .regex(/^[^\0]*$/, 'must not contain a NUL character')
    .regex(/^(?![a-z][a-z\d+.-]+:\/\/)/i, 'must be a path or a file: URL, and a URL no text'),
)

/**
 * The path that `value` is; `subject` says what it is of. Throws INVALID_OPTION.
 *
 * @internal
 */
export function pathOf(value: PathOrUrl, subject: string): string {
  const { success, data, error } = path.safeParse(value)
  if (success) return data
  const problem = error.issues[0]?.message ?? 'must be a path'
  throw new SparseGptError('INVALID_OPTION', `${subject}: ${problem} (given: ${show(value)})`)
}

/**
 * Parses `value` with `schema`; throws INVALID_OPTION that names the option, its value and what is allowed.
 * `subject` says whose options they are, `noun` what a part of the value is called.
 *
 * @internal
 */
export function parseOptions<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  subject: string,
  noun = 'option',
): z.output<Schema> {
  try {
    const result = schema.safeParse(value)
    if (result.success) return result.data
    const problems = result.error.issues.map((issue) => problemOf(issue, value, noun))
    throw new SparseGptError('INVALID_OPTION', `${subject}: ${problems.join('; ')}`)
  } catch (cause) {
    if (cause instanceof SparseGptError) throw cause
    // A getter that throws, or a proxy that has been revoked.
    throw new SparseGptError('INVALID_OPTION', `${subject}: the ${noun}s cannot be read`, { cause })
  }
}

function problemOf(issue: z.core.$ZodIssue, value: unknown, noun: string): string {
  if (issue.code === 'unrecognized_keys') return `unknown ${noun} ${issue.keys.join(', ')}`
  const given: unknown = issue.path.reduce<unknown>(
    (inner, key) => (typeof inner === 'object' && inner !== null ? Reflect.get(inner, key) : undefined),
    value,
  )
  const shown = given === undefined ? '' : ` (given: ${show(given)})`
  if (issue.path.length === 0) {
    const isObject = issue.code === 'invalid_type' && issue.expected === 'object'
    return `the ${noun}s ${isObject ? 'must be an object' : issue.message}${shown}`
  }
  return `${noun} ${issue.path.map(String).join('.')}: ${issue.message}${shown}`
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (typeof value === 'function') return 'a function'
  if (value instanceof URL) return value.href
  // 'Date' from '[object Date]'; an object need not have a constructor to ask.
  return typeof value === 'object' && value !== null
    ? Object.prototype.toString.call(value).slice(8, -1)
    : String(value)
}
