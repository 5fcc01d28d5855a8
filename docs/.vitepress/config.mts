import { existsSync, readFileSync } from 'node:fs'
import { slug } from 'github-slugger'
import { defineConfig, type DefaultTheme, type MarkdownOptions } from 'vitepress'

type Rules = Parameters<NonNullable<MarkdownOptions['config']>>[0]

const read = (path: string): unknown => JSON.parse(readFileSync(new URL(path, import.meta.url), 'utf8'))
const { version, repository } = read('../../package.json') as {
  version: string
  repository?: { url: string }
}
const sources = repository?.url.replace(/^git\+/, '').replace(/\.git$/, '')

/** Written by TypeDoc, which runs before. */
const api = new URL('../api/typedoc-sidebar.json', import.meta.url)

/**
 * Links to files outside docs/ lead to the repository; where none is known their text stands alone. The page that has README's
 * text has its links, too, which start from the folder above.
 */
function linkSources(markdown: Rules): void {
  markdown.core.ruler.push('sources', ({ tokens, env }) => {
    const isReadme = (env as { relativePath?: string }).relativePath === 'start.md'
    const placed = (path: string) => {
      if (!isReadme || /^(#|\w+:)/.test(path)) return path
      return path.startsWith('docs/')
        ? path.replace('docs/public/', '/').replace('docs/', './')
        : `../${path}`
    }
    for (const { children } of tokens) {
      for (const image of (children ?? []).filter(({ type }) => type === 'image')) {
        image.attrSet('src', placed(String(image.attrGet('src'))))
      }
      const links = (children ?? []).filter(({ type }) => type === 'link_open' || type === 'link_close')
      links.forEach((open, at) => {
        if (open.type !== 'link_open') return
        const target = placed(String(open.attrGet('href')))
        const path = /^\.\.\/(.*)/.exec(target)?.[1]
        if (path === undefined) open.attrSet('href', target)
        else if (sources !== undefined) open.attrSet('href', `${sources}/blob/main/${path}`)
        else {
          open.attrs = null
          open.tag = links[at + 1]!.tag = 'span'
        }
      })
    }
  })
}

const page = (text: string, link: string): DefaultTheme.SidebarItem => ({ text, link })

export default defineConfig({
  title: 'sparsegpt',
  description: 'Prunes GPT-family language models in one shot, from Node.',
  outDir: '../build/docs',
  cacheDir: '../build/docs-cache',
  base: process.env['DOCS_BASE'] ?? '/',
  lastUpdated: false,
  markdown: {
    // Headings have the anchors that they have on GitHub, so that a link is right in both places.
    anchor: { slugify: (heading) => slug(heading) },
    config: linkSources,
  },
  themeConfig: {
    search: { provider: 'local' },
    outline: [2, 3],
    nav: [
      page('Guide', '/start'),
      page('Reference', '/reference'),
      page('API', '/api/'),
    ] as DefaultTheme.NavItem[],
    ...(sources === undefined ? {} : { socialLinks: [{ icon: 'github', link: sources }] }),
    sidebar: [
      {
        text: 'Guide',
        items: [page('Getting started', '/start'), page('Method', '/method'), page('Quality', '/quality')],
      },
      {
        text: 'Reference',
        items: [
          page('Options, reports, errors', '/reference'),
          {
            text: 'API',
            link: '/api/',
            collapsed: true,
            items: existsSync(api) ? (read('../api/typedoc-sidebar.json') as DefaultTheme.SidebarItem[]) : [],
          },
        ],
      },
      {
        text: 'Scale and speed',
        items: [
          page('Performance', '/performance'),
          page('Models beyond memory', '/scale'),
          page('Many machines', '/many-machines'),
          page('CUDA', '/cuda'),
        ],
      },
      {
        text: 'Inside',
        items: [page('Architecture', '/architecture'), page('Adding a model family', '/adding-a-family')],
      },
    ],
    footer: { message: `sparsegpt ${version}, Apache-2.0` },
  },
})
