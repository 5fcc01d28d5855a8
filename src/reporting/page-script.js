// What a report's page runs. The page has the tables; this draws the charts and the masks from the same numbers, in the colours of the
// page's scheme, and lets the keyboard read them. uPlot is there as a global.

const data = JSON.parse(document.getElementById('data').textContent)
const style = getComputedStyle(document.documentElement)
const color = (name) => style.getPropertyValue(name).trim()
const dashes = [[], [7, 4], [2, 3], [10, 3, 2, 3]]
const palette = 8

const number = (value, percent) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–'
  if (percent) return `${(value * 100).toPrecision(4)} %`
  return Number.isInteger(value) ? String(value) : value.toPrecision(4)
}

/** The names that stand in the place of the numbers of an axis, cut where they would lie over each other. */
const nameOf = (x, value) => {
  const name = x.names?.[value]
  if (name === undefined) return Number.isInteger(value) || !x.names ? String(value) : ''
  return name.length > 18 ? `${name.slice(0, 17)}…` : name
}

const plots = []

function draw(figure, chart) {
  const place = figure.querySelector('.plot')
  const { x, y, series, kind } = chart
  const at = (i) => color(`--series-${i % palette}`)
  const bars = kind === 'bars' ? uPlot.paths.bars({ size: [0.6, 80] }) : undefined
  const steps = kind === 'steps' ? uPlot.paths.stepped({ align: 1 }) : undefined
  const paths = bars ?? steps
  const axis = {
    stroke: () => color('--text'),
    grid: { stroke: () => color('--line'), width: 1 },
    ticks: { stroke: () => color('--line'), width: 1 },
    font: '12px system-ui, sans-serif',
    labelFont: '12px system-ui, sans-serif',
  }
  const few = x.values.length < 40
  const plot = new uPlot(
    {
      width: Math.max(280, place.clientWidth),
      height: 260,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 8 } },
      scales: {
        x: {
          time: false,
          range: (_, least, most) =>
            kind === 'lines' && most > least ? [least, most] : [least - 0.5, most + 0.5],
        },
        y: {
          distr: y.log ? 3 : 1,
          ...(y.log ? {} : { range: (_, least, most) => [Math.min(0, least), most > 0 ? most * 1.05 : 1] }),
        },
      },
      series: [
        { label: x.label },
        ...series.map(({ label }, i) => ({
          label,
          stroke: () => at(i),
          fill: bars ? () => `${at(i)}99` : undefined,
          width: 2,
          dash: bars ? [] : dashes[i % dashes.length],
          spanGaps: true,
          points: { show: !paths && few, size: 6 },
          ...(paths && { paths }),
        })),
      ],
      axes: [
        {
          ...axis,
          label: x.label,
          values: (_, splits) => splits.map((value) => nameOf(x, value)),
          ...(x.integers || x.names
            ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000, 100000] }
            : {}),
        },
        {
          ...axis,
          label: y.label,
          size: 90,
          values: (_, splits) => splits.map((value) => (value === null ? '' : number(value, y.percent))),
        },
      ],
    },
    [x.values, ...series.map(({ values }) => values)],
    place,
  )
  plots.push({ plot, place })
  legend(figure, plot, series, at)
  readable(figure, plot, chart)
}

/** A button for each series, which shows and hides it. */
function legend(figure, plot, series, at) {
  if (series.length < 2) return
  const list = figure.querySelector('.legend')
  series.forEach(({ label }, i) => {
    const button = document.createElement('button')
    button.type = 'button'
    button.setAttribute('aria-pressed', 'true')
    const line = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
    line.setAttribute('width', '28')
    line.setAttribute('height', '8')
    line.setAttribute('aria-hidden', 'true')
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path')
    path.setAttribute('d', 'M0 4H28')
    path.setAttribute('stroke-width', '3')
    path.setAttribute('stroke-dasharray', dashes[i % dashes.length].join(' '))
    line.append(path)
    button.append(line, label)
    recolor.push(() => path.setAttribute('stroke', at(i)))
    button.addEventListener('click', () => {
      const shown = button.getAttribute('aria-pressed') !== 'true'
      button.setAttribute('aria-pressed', String(shown))
      plot.setSeries(i + 1, { show: shown })
    })
    list.append(button)
  })
}

/** Lets arrow keys and the pointer move a cursor through the chart, whose values are written, and said, below it. */
function readable(figure, plot, { x, y, series }) {
  const place = figure.querySelector('.plot')
  const output = figure.querySelector('output')
  let index = -1
  const say = () => {
    if (index < 0) return
    const name = x.names?.[index] ?? number(x.values[index])
    const values = series
      .map(({ label, values }, i) => ({ label, value: values[index], shown: plot.series[i + 1].show }))
      .filter(({ value, shown }) => shown && value !== null && value !== undefined)
    output.textContent = `${x.label} ${name}: ${values.map(({ label, value }) => `${label} ${number(value, y.percent)}`).join(', ')}`
  }
  const last = x.values.length - 1
  const moves = {
    ArrowRight: () => Math.min(last, index + 1),
    ArrowLeft: () => Math.max(0, index - 1),
    Home: () => 0,
    End: () => last,
  }
  place.addEventListener('keydown', (event) => {
    const move = moves[event.key]
    if (!move) return
    event.preventDefault()
    index = move()
    plot.setCursor({ left: plot.valToPos(x.values[index], 'x'), top: 10 })
    say()
  })
  plot.over.addEventListener('mousemove', () => {
    index = plot.cursor.idx ?? -1
    say()
  })
}

/** What gives a part of the page the scheme's colours again. */
const recolor = []

/** The share of zeros as the mixture of two colours. */
function paint(canvas, { rows, columns, bytes }) {
  const shares = Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0))
  canvas.width = columns
  canvas.height = rows
  const context = canvas.getContext('2d')
  const fill = () => {
    const [kept, pruned] = ['--kept', '--pruned'].map((name) => {
      const [, r, g, b] = /^#(..)(..)(..)$/.exec(color(name))
      return [r, g, b].map((part) => parseInt(part, 16))
    })
    const image = context.createImageData(columns, rows)
    shares.forEach((share, i) => {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = kept[c] + ((pruned[c] - kept[c]) * share) / 255
      image.data[4 * i + 3] = 255
    })
    context.putImageData(image, 0, 0)
  }
  fill()
  recolor.push(fill)
}

// A browser in which the charts' program does not run shows the tables.
if (globalThis.uPlot) {
  for (const figure of document.querySelectorAll('figure[data-chart]'))
    draw(figure, data.charts[figure.dataset.chart])
}
for (const canvas of document.querySelectorAll('canvas[data-mask]'))
  paint(canvas, data.masks[canvas.dataset.mask])

const refresh = () => {
  for (const action of recolor) action()
  for (const { plot } of plots) plot.redraw(false, true)
}
refresh()
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', refresh)
addEventListener('resize', () => {
  for (const { plot, place } of plots) plot.setSize({ width: Math.max(280, place.clientWidth), height: 260 })
})
