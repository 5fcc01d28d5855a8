/** A string, which may hold anything, or one of the numbers that Python's json writes and JSON does not have. */
const stringOrNumber = /"[^"\\]*(?:\\.[^"\\]*)*"|-?Infinity|NaN/g

/** Parses JSON as Python's json does: with NaN, Infinity and -Infinity. Throws SyntaxError. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    // A number that overflows is infinite; there is none that is not a number, so a string of its own stands for it.
    const mark = `\0NaN${Math.random()}`
    const replaced = text.replace(stringOrNumber, (match) => {
      if (match.startsWith('"')) return match
      return match === 'NaN' ? JSON.stringify(mark) : match.replace('Infinity', '1e999')
    })
    if (replaced === text) throw error
    return JSON.parse(replaced, (_, value: unknown) => (value === mark ? NaN : value))
  }
}
