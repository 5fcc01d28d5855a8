import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import type { Shares } from './picture.js'

/** A chart: values over numbers, or over names. */
export interface Chart {
  /** lines: points that are joined; steps: counts of bins; bars: one for each name. */
  kind: 'lines' | 'steps' | 'bars'
  x: { label: string; values: number[]; names?: string[]; integers?: boolean }
  y: { label: string; percent?: boolean; log?: boolean }
  series: { label: string; values: (number | null)[] }[]
}

export interface Table {
  head: string[]
  rows: (string | number | null)[][]
}

/** A picture of a mask. */
export interface Mask {
  caption: string
  shares: Shares
}

/** A part of a page: a heading, and below it what there is of a text, a chart, masks and a table. */
export interface Section {
  title: string
  text?: string
  chart?: Chart
  masks?: Mask[]
  table?: Table
  /** Whether the table is shown at once, where it is not what a chart shows. */
  open?: boolean
}

/** A page as HTML in one file, which asks for nothing else. All texts may be anything: none of them is read as HTML. */
export async function pageOf(title: string, lead: string, sections: readonly Section[]): Promise<string> {
  const data = { charts: [] as Chart[], masks: [] as Shares[] }
  const body = sections.map((section, i) => sectionHtml(section, `s${i}`, data)).join('\n')
  const { library, styles, licence } = await uplot()
  const script = await readFile(new URL('./page-script.js', import.meta.url), 'utf8')
  const css = styles + ownStyles
  const policy = [
    "default-src 'none'",
    `script-src ${hash(library)} ${hash(script)}`,
    `style-src ${hash(css)}`,
    "base-uri 'none'",
    "form-action 'none'",
  ].join('; ')
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${escaped(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escaped(title)}</title>
<style>${css}</style>
</head>
<body>
<main>
<h1>${escaped(title)}</h1>
<p>${escaped(lead)}</p>
${body}
</main>
<footer>Charts: uPlot, under the MIT licence.</footer>
<!-- uPlot
${licence.replaceAll('--', '- -')}
-->
<script type="application/json" id="data">${json(data)}</script>
<script>${library}</script>
<script type="module">${script}</script>
</body>
</html>
`
}

const entities: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

const escaped = (text: string) => text.replace(/[&<>"']/g, (character) => entities[character]!)

/** JSON that cannot end the element that it stands in. */
const json = (value: unknown) => JSON.stringify(value).replaceAll('<', '\\u003c').replaceAll('>', '\\u003e')

const hash = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`

/** What goes before the library, which fails for a browser that names a language that is none, such as en-US@posix. */
const knownLanguage =
  "try{new Intl.NumberFormat(navigator.language)}catch{Object.defineProperty(navigator,'language',{value:'en-US'})}"

/** What the package of the charts has: its program for pages, its styles and its licence. */
async function uplot(): Promise<{ library: string; styles: string; licence: string }> {
  const program = createRequire(import.meta.url).resolve('uplot/dist/uPlot.iife.min.js')
  const read = (path: string) => readFile(join(dirname(program), path), 'utf8')
  const [library, styles, licence] = await Promise.all([
    readFile(program, 'utf8'),
    read('uPlot.min.css'),
    read(join('..', 'LICENSE')),
  ])
  return { library: `${knownLanguage};${library}`, styles, licence }
}

function sectionHtml(
  { title, text, chart, masks = [], table, open = !chart && masks.length === 0 }: Section,
  id: string,
  data: { charts: Chart[]; masks: Shares[] },
): string {
  const parts = [`<section aria-labelledby="${id}"><h2 id="${id}">${escaped(title)}</h2>`]
  if (text !== undefined) parts.push(`<p>${escaped(text)}</p>`)
  if (chart) {
    const names = chart.series.map(({ label }) => label).join(', ')
    const label = `Chart: ${title}; ${chart.y.label} of ${names} over ${chart.x.label}. The arrow keys read its values; the table below has all of them.`
    parts.push(
      `<figure data-chart="${data.charts.push(chart) - 1}"><div class="plot" tabindex="0" role="group" aria-roledescription="chart" aria-label="${escaped(label)}"></div>` +
        `<div class="legend" role="group" aria-label="Series of ${escaped(title)}"></div><output aria-live="polite"></output></figure>`,
    )
  }
  if (masks.length > 0) {
    const figures = masks.map(
      ({ caption, shares }) =>
        `<figure class="mask"><canvas role="img" data-mask="${data.masks.push(shares) - 1}" aria-label="${escaped(caption)}"></canvas><figcaption>${escaped(caption)}</figcaption></figure>`,
    )
    parts.push(`<div class="masks">${figures.join('')}</div>`)
  }
  if (table) {
    const head = table.head.map((name) => `<th scope="col">${escaped(name)}</th>`).join('')
    const rows = table.rows.map((cells) => `<tr>${cells.map(cellHtml).join('')}</tr>`).join('\n')
    const html = `<div class="table" tabindex="0" role="region" aria-label="Table: ${escaped(title)}"><table><thead><tr>${head}</tr></thead><tbody>\n${rows}\n</tbody></table></div>`
    parts.push(open ? html : `<details><summary>Table: ${escaped(title)}</summary>${html}</details>`)
  }
  return `${parts.join('\n')}\n</section>`
}

function cellHtml(value: string | number | null, column: number): string {
  const text = value === null ? '–' : typeof value === 'number' ? shown(value) : value
  const content = escaped(text)
  if (column === 0) return `<th scope="row">${content}</th>`
  return typeof value === 'number' ? `<td class="number">${content}</td>` : `<td>${content}</td>`
}

const shown = (value: number) =>
  Number.isInteger(value) ? String(value) : Number.isFinite(value) ? value.toPrecision(5) : '–'

const ownStyles = `
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --soft: #f3f5f7; --line: #d5dae0; --link: #0b57a4;
  --kept: #174a7c; --pruned: #f4e3b2;
  --series-0: #0b62b3; --series-1: #b34700; --series-2: #00775a; --series-3: #a4307a; --series-4: #6d5600; --series-5: #5b46c9; --series-6: #c01f2e; --series-7: #4b5560; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --back: #14181d; --soft: #1e242b; --line: #3a434d; --link: #8ec5ff;
  --kept: #7fb8f0; --pruned: #33291a;
  --series-0: #6cb6ff; --series-1: #ffa05c; --series-2: #4fd1ae; --series-3: #f58bcb; --series-4: #e3c94f; --series-5: #b3a4ff; --series-6: #ff8589; --series-7: #b4bfca; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 48rem; margin: .3rem 0 .8rem; overflow-wrap: anywhere; }
figure { margin: .8rem 0; }
.plot { min-height: 260px; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem; }
.legend button { font: inherit; font-size: .85rem; color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: .3rem; padding: .1rem .5rem; display: inline-flex; gap: .4rem; align-items: center; cursor: pointer; }
.legend button[aria-pressed=false] { opacity: .65; text-decoration: line-through; }
output { display: block; min-height: 1.5em; font-size: .85rem; font-variant-numeric: tabular-nums; }
.masks { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.mask { width: 14rem; margin: 0; }
.mask canvas { width: 14rem; height: 14rem; image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--link); }
.table { max-height: 30rem; overflow: auto; border: 1px solid var(--line); margin: .4rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--soft); }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
footer { max-width: 62rem; margin: 0 auto; padding: 1rem; font-size: .8rem; }
`
