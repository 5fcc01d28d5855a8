#!/usr/bin/env node
// Draws the picture of README and of the docs' front page, docs/public/perplexity.svg, from the table of docs/quality.md that
// stands under "Over sparsity". It is readable on a dark and on a light page.
//
//   node scripts/draw-perplexity.mjs [--check]      --check: fail when the picture is not that of the table

import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './install.mjs'

const [width, height] = [720, 400]
const plot = { left: 64, right: width - 150, top: 44, bottom: height - 52 }
/** What is above this leaves the picture: such a model has lost its language. */
const ceiling = 1000

/** The table's ways of pruning with their points, and the perplexity of the dense model. */
function readTable() {
  const text = readFileSync(join(root, 'docs', 'quality.md'), 'utf8')
  const [, section = ''] = text.split('\n### Over sparsity\n')
  const rows = section
    .split('\n')
    .slice(1)
    .map((line) => line.split('|').slice(1, -1))
    .map((cells) => cells.map((cell) => cell.trim()))
  const start = rows.findIndex((cells) => cells.length > 0)
  const end = rows.findIndex((cells, index) => index > start && cells.length === 0)
  const [head, , ...body] = rows.slice(start, end)
  const dense = Number(body.find(([sparsity]) => sparsity === '0 %')[1])
  const lines = head.slice(1).map((name, way) => ({
    name: name.replaceAll('`', '').replace('--', ''),
    points: body.flatMap((cells) => {
      const [sparsity, perplexity] = [parseFloat(cells[0]), Number(cells[way + 1])]
      return perplexity > 0 ? [{ sparsity, perplexity }] : []
    }),
  }))
  return { dense, lines }
}

function draw({ dense, lines }) {
  const highest = Math.max(...lines.flatMap(({ points }) => points.map(({ sparsity }) => sparsity)))
  const x = (sparsity) => plot.left + ((plot.right - plot.left) * sparsity) / highest
  const floor = 20
  const y = (perplexity) =>
    plot.bottom - ((plot.bottom - plot.top) * Math.log(perplexity / floor)) / Math.log(ceiling / floor)
  const round = (value) => Number(value.toFixed(1))
  const text = (at, up, words, more = '') => `<text x="${round(at)}" y="${round(up)}"${more}>${words}</text>`
  const grid = [30, 50, 100, 200, 500, 1000].flatMap((value) => [
    `<line class="grid" x1="${plot.left}" x2="${plot.right}" y1="${round(y(value))}" y2="${round(y(value))}"/>`,
    text(plot.left - 8, y(value) + 4, value, ' text-anchor="end"'),
  ])
  const ticks = Array.from({ length: highest / 10 + 1 }, (_, index) => index * 10).map((sparsity) =>
    text(x(sparsity), plot.bottom + 20, `${sparsity} %`, ' text-anchor="middle"'),
  )
  const curves = lines.flatMap(({ name, points }, index) => {
    const path = points.map(
      ({ sparsity, perplexity }, at) =>
        `${at === 0 ? 'M' : 'L'}${round(x(sparsity))} ${round(y(perplexity))}`,
    )
    const inside = points.filter(({ perplexity }) => perplexity <= ceiling)
    const last = inside.at(-1)
    const leaves = inside.length < points.length
    return [
      `<path class="way${index}" d="${path.join('')}" clip-path="url(#plot)"/>`,
      ...inside.map(
        ({ sparsity, perplexity }) =>
          `<circle class="way${index}" cx="${round(x(sparsity))}" cy="${round(y(perplexity))}" r="3.5"/>`,
      ),
      leaves
        ? text(x(crossing(points)) - 8, plot.top - 8, name, ` class="name way${index}"`)
        : last.sparsity < highest
          ? text(
              x(last.sparsity) - 8,
              y(last.perplexity) - 8,
              name,
              ` class="name way${index}" text-anchor="end"`,
            )
          : text(x(last.sparsity) + 10, y(last.perplexity) + 4, name, ` class="name way${index}"`),
    ]
  })
  const summary = lines
    .map(({ name, points }) => {
      const half = points.find(({ sparsity }) => sparsity === 50)
      return `${name} ${half?.perplexity ?? ''}`
    })
    .join(', ')
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-labelledby="title description">
<title id="title">Perplexity of SmolLM2-135M over sparsity</title>
<desc id="description">At 50 % of zeros: ${summary}. The dense model has ${dense}.</desc>
<style>
svg { --ink: #1f2328; --soft: #656d76; --line: #d1d9e0; --way0: #b35900; --way1: #8250df; --way2: #0969da; --way3: #1a7f37 }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --way0: #f0883e; --way1: #bc8cff; --way2: #58a6ff; --way3: #3fb950 }
}
text { font: 13px system-ui, sans-serif; fill: var(--soft) }
.name { font-weight: 600 }
.grid { stroke: var(--line) }
.dense { stroke: var(--ink); stroke-dasharray: 5 4 }
path { fill: none; stroke-width: 2.5 }
${lines.map((_, index) => `path.way${index} { stroke: var(--way${index}) } circle.way${index}, text.way${index} { fill: var(--way${index}) }`).join('\n')}
</style>
<clipPath id="plot"><rect x="${plot.left}" y="${plot.top}" width="${plot.right - plot.left}" height="${plot.bottom - plot.top}"/></clipPath>
${grid.join('\n')}
${ticks.join('\n')}
<line class="dense" x1="${plot.left}" x2="${plot.right}" y1="${round(y(dense))}" y2="${round(y(dense))}"/>
${text(plot.left + 6, y(dense) + 16, `dense ${dense}`)}
${curves.join('\n')}
${text((plot.left + plot.right) / 2, height - 12, 'weights pruned', ' text-anchor="middle"')}
${text(plot.left - 50, 18, 'perplexity, WikiText-2 (lower is better)')}
</svg>
`
}

/** The sparsity at which a curve reaches the ceiling, between two of its points. */
function crossing(points) {
  const at = points.findIndex(({ perplexity }) => perplexity > ceiling)
  const [before, after] = [points[at - 1], points[at]]
  const share = Math.log(ceiling / before.perplexity) / Math.log(after.perplexity / before.perplexity)
  return before.sparsity + share * (after.sparsity - before.sparsity)
}

const file = join(root, 'docs', 'public', 'perplexity.svg')
const picture = draw(readTable())
if (!process.argv.includes('--check')) writeFileSync(file, picture)
else if (readFileSync(file, 'utf8') !== picture) {
  console.error(`${file} is not the picture of the table: node scripts/draw-perplexity.mjs draws it`)
  process.exit(1)
}
