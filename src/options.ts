import type * as z from 'zod'
import { SparseGptError } from './errors.js'

/**
 * Parses `value` with `schema`; throws INVALID_OPTION that names the option, its value and what is allowed.
 * `subject` says whose options they are.
 */
export function parseOptions<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  subject: string,
): z.output<Schema> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const problems = result.error.issues.map((issue) => {
    if (issue.code === 'unrecognized_keys') return `unknown option ${issue.keys.join(', ')}`
    const name = issue.path.join('.')
    const given: unknown = issue.path.reduce<unknown>(
      (inner, key) => (typeof inner === 'object' && inner !== null ? Reflect.get(inner, key) : undefined),
      value,
    )
    return `option ${name}: ${issue.message}${given === undefined ? '' : ` (given: ${show(given)})`}`
  })
  throw new SparseGptError('INVALID_OPTION', `${subject}: ${problems.join('; ')}`)
}

function show(value: unknown): string {
  if (typeof value === 'object' && value !== null) return value.constructor.name
  return typeof value === 'string' ? JSON.stringify(value) : String(value)
}
