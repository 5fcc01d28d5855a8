import { textParts, type TextOptions } from '../../src/text/text.js'

/** The text of a file as one string. */
export async function readText(file: string, options?: TextOptions): Promise<string> {
  let text = ''
  for await (const part of textParts(file, options)) text += part
  return text
}
