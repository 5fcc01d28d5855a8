import * as z from 'zod'

/** A pattern: n of every m neighbouring weights in a row are pruned. */
export interface Pattern {
  n: number
  m: number
}

/**
 * Parses a pattern such as '2:4'.
 *
 * @internal
 */
export const pattern = z.string().transform((text, context): Pattern => {
  const match = /^(\d{1,4}):(\d{1,4})$/.exec(text)
  const [n, m] = match ? [Number(match[1]), Number(match[2])] : [0, 0]
  if (n < 1 || n >= m) {
    context.issues.push({
      code: 'custom',
      input: text,
      message: 'must be n:m with 1 <= n < m, such as 2:4 or 4:8',
    })
    return z.NEVER
  }
  return { n, m }
})
