import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import MarkdownIt from 'markdown-it'

/** The folder of the project. */
export const project = fileURLToPath(new URL('../..', import.meta.url))

/** The Markdown files that people read, by their paths from the project's folder. */
export const documents = ['.', 'docs', 'examples', 'prebuilds']
  .filter((folder) => existsSync(join(project, folder)))
  .flatMap((folder) => readdirSync(join(project, folder)).map((name) => join(folder, name)))
  .filter((path) => path.endsWith('.md'))

/** A code block of a document. */
export interface Block {
  /** The document and the line of the block's first line of code. */
  place: string
  /** The word behind the fence; empty for an indented block or a bare fence. */
  language: string
  /** What stands behind that word: `no-run="needs a GPU"`, `from=src/x.ts`, `file=x.json`. */
  marks: Record<string, string>
  code: string
}

const markdown = new MarkdownIt({ html: true })

/** The code blocks of a document, in order. */
export function blocksOf(document: string): Block[] {
  const tokens = markdown.parse(readFileSync(join(project, document), 'utf8'), {})
  return tokens.flatMap((token) => {
    if (token.type !== 'fence' && token.type !== 'code_block') return []
    const [language = '', ...rest] = token.info.trim().split(' ')
    const pairs = rest.join(' ').matchAll(/([\w-]+)=(?:"([^"]*)"|(\S+))/g)
    const marks = Object.fromEntries([...pairs].map(([, name, quoted, bare]) => [name, quoted ?? bare]))
    const place = `${document}:${(token.map?.[0] ?? 0) + (token.type === 'fence' ? 2 : 1)}`
    return [{ place, language, marks, code: token.content }]
  })
}
