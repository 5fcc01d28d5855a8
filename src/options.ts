import * as z from 'zod'
import { SparseGptError } from './errors.js'

/** Validates a path as the system takes it. */
export const path = z
  .string()
  .min(1)
  .regex(/^[^\0]*$/, 'must not contain a NUL character')

/**
 * Parses `value` with `schema`; throws INVALID_OPTION that names the option, its value and what is allowed.
 * `subject` says whose options they are, `noun` what a part of the value is called.
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
  if (issue.path.length === 0) return `the ${noun}s must be an object${shown}`
  return `${noun} ${issue.path.map(String).join('.')}: ${issue.message}${shown}`
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (typeof value === 'function') return 'a function'
  // 'Date' from '[object Date]'; an object need not have a constructor to ask.
  return typeof value === 'object' && value !== null
    ? Object.prototype.toString.call(value).slice(8, -1)
    : String(value)
}
