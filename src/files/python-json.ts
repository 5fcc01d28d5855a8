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

/**
 * The JSON object in `text` with the entry `name` set to `value`, or without it if that is undefined. All other entries keep their text, in
 * which numbers may be what no program can hold.
 */
export function replaceEntry(text: string, name: string, value: unknown): string {
  const members: string[] = []
  let depth = 0
  let begin = 0
  for (const { 0: token, index } of text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],]/g)) {
    if ((token === ',' || token === '}') && depth === 1) {
      members.push(text.slice(begin, index).trim())
      begin = index + 1
    }
    if (token === '{' || token === '[') {
      if (depth === 0) begin = index + 1
      depth++
    }
    if (token === '}' || token === ']') depth--
  }
  const others = members.filter(
    (member) => member !== '' && Object.keys(parseJson(`{${member}}`) as object)[0] !== name,
  )
  const own =
    value === undefined
      ? []
      : [`${JSON.stringify(name)}: ${JSON.stringify(value, null, 2).replaceAll('\n', '\n  ')}`]
  return `{\n${[...others, ...own].map((member) => `  ${member}`).join(',\n')}\n}${text.slice(text.lastIndexOf('}') + 1)}`
}
