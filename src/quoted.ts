const longest = 120

/** A value as JSON for an error message; what is long is cut, and what has no JSON is named by its type. */
export function quoted(value: unknown): string {
  let text: string | undefined
  try {
    // A value that nests too deeply overflows the stack.
    text = JSON.stringify(value)
  } catch {
    return `a deeply nested or unprintable ${Array.isArray(value) ? 'array' : typeof value}`
  }
  text ??= typeof value
  return text.length > longest ? `${text.slice(0, longest)}…` : text
}
