// Links of the documents, as they are read on the repository's pages, and of the built pages.

import { existsSync, readFileSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { dirname, join, normalize } from 'node:path'
import { spawnSync } from 'node:child_process'
import { beforeAll, describe, expect, test } from '@jest/globals'
import GithubSlugger from 'github-slugger'
import MarkdownIt from 'markdown-it'
import { documents, project } from './blocks.js'

const markdown = new MarkdownIt({ html: true })
const source = (document: string) =>
  readFileSync(join(project, document), 'utf8').replace(/^---\n.*?\n---\n/s, '')
const isInside = (target: string) => !/^(\w+:|\/\/)/.test(target)

/** The anchors of a document's headings, as GitHub names them. */
function anchorsOf(document: string): string[] {
  const slugger = new GithubSlugger()
  const tokens = markdown.parse(source(document), {})
  return tokens.flatMap(({ type }, at) => {
    if (type !== 'heading_open') return []
    const words = tokens[at + 1]!.children!.filter(
      (child) => child.type === 'text' || child.type === 'code_inline',
    )
    return [slugger.slug(words.map(({ content }) => content).join(''))]
  })
}

const linksOf = (document: string): string[] =>
  markdown
    .parse(source(document), {})
    .flatMap(({ children }) => children ?? [])
    .flatMap((token) => [token.attrGet('href'), token.attrGet('src')])
    .filter((target): target is string => target !== null && isInside(target))

test.each(documents)('%s: what it links to is there, and so are the headings', (document) => {
  const broken = linksOf(document).filter((link) => {
    const [path = '', anchor] = link.split('#')
    const target = path === '' ? document : normalize(join(dirname(document), path))
    // Pages and pictures of the site alone; the test of the site follows these links.
    if (path.startsWith('/')) return false
    if (!existsSync(join(project, target))) return true
    return anchor !== undefined && !anchorsOf(target).includes(anchor)
  })
  expect(broken).toEqual([])
})

test('the picture is that of the table', () => {
  const { status, stderr } = spawnSync(process.execPath, ['scripts/draw-perplexity.mjs', '--check'], {
    cwd: project,
    encoding: 'utf8',
  })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
})

describe('the built pages', () => {
  const site = join(project, 'build', 'docs')
  let pages: Map<string, string>
  beforeAll(async () => {
    const built = spawnSync('npm', ['run', '--silent', 'docs'], { cwd: project, encoding: 'utf8' })
    if (built.status !== 0) throw new Error(built.stdout + built.stderr)
    const names = (await readdir(site, { recursive: true })).filter((name) => name.endsWith('.html'))
    pages = new Map(names.map((name) => [name, readFileSync(join(site, name), 'utf8')]))
  })

  /** The page at an address; undefined where there is none. */
  const pageAt = (path: string) =>
    [path, `${path}.html`, join(path, 'index.html')].find((name) => pages.has(name))

  test('link to pages, files and headings that are there', () => {
    const broken = [...pages].flatMap(([name, html]) =>
      [...html.matchAll(/<(?:a|img|link|script)\b[^>]*? (?:href|src)="([^"]*)"/g)]
        .map(([, link = '']) => link.replaceAll('&amp;', '&'))
        .filter(isInside)
        .filter((link) => {
          const [path = '', anchor] = decodeURI(link).split('#')
          const from = path.startsWith('/') ? path.slice(1) : join(dirname(name), path)
          const page = path === '' ? name : pageAt(from === '' ? 'index.html' : normalize(from))
          if (page === undefined) return !existsSync(join(site, from))
          return anchor !== undefined && anchor !== '' && !pages.get(page)!.includes(`id="${anchor}"`)
        })
        .map((link) => `${name}: ${link}`),
    )
    expect(broken).toEqual([])
  })

  test('hold every document, and every name that the package exports', async () => {
    for (const document of documents.filter((name) => name.startsWith('docs'))) {
      expect([...pages.keys()]).toContain(document.slice('docs/'.length).replace(/md$/, 'html'))
    }
    const names = Object.keys(await import('../../src/index.js'))
    const documented = [...pages.keys()].map((name) => name.replace(/^.*\/|\.html$/g, ''))
    expect(documented).toEqual(expect.arrayContaining(names))
  })
})
