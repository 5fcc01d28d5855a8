import { Document, isMap, isSeq, parseDocument } from 'yaml'
import { commandOf } from './command.js'
import { reportFiles, type ModelJobReport } from './report.js'

const begin = '<!-- sparsegpt: begin -->'
const end = '<!-- sparsegpt: end -->'
/** The front matter of a README.md, as the hub reads it. */
const frontMatter = /^\uFEFF?---[ \t]*\r?\n([\s\S]*?)(?:\r?\n)?---[ \t]*(?:\r?\n|$)/

/**
 * The README.md of a model that a job has made: that of its source with a section on the job, in the place of an earlier one if there
 * is one, and with tags in its front matter. All else stays as it is; so does a front matter that is no YAML.
 */
export function modelCard(readme: string, report: ModelJobReport): string {
  const [whole = '', yaml = ''] = frontMatter.exec(readme) ?? []
  const lines = (text: string) => (readme.includes('\r\n') ? text.replaceAll('\n', '\r\n') : text)
  const front = frontOf(yaml.replaceAll('\r\n', '\n'), report)
  return (front === undefined ? whole : lines(front)) + withSection(readme.slice(whole.length), report, lines)
}

/** The front matter with what is to be in it; undefined where what is there cannot be read. */
function frontOf(yaml: string, { model }: ModelJobReport): string | undefined {
  const document = yaml.trim() === '' ? new Document({}) : parseDocument(yaml)
  if (document.errors.length > 0 || !isMap(document.contents)) return undefined
  const base = hubId(model)
  if (base !== undefined) document.set('base_model', base)
  const tags: unknown = document.get('tags')
  const known: unknown[] = isSeq(tags) ? tags.toJSON() : typeof tags === 'string' ? [tags] : []
  const missing = ['sparse', 'sparsegpt'].filter((tag) => !known.includes(tag))
  if (isSeq(tags)) for (const tag of missing) tags.add(tag)
  else if (missing.length > 0 && !isMap(tags)) document.set('tags', [...known, ...missing])
  return `---\n${document.toString({ lineWidth: 0 })}---\n`
}

/** The id of a model on the hub, without a commit; undefined for a folder. */
export const hubId = (model: string): string | undefined =>
  /^([\w.-]+(?:\/[\w.-]+)?)(?:@[^/]+)?$/.exec(model)?.[1]

function withSection(text: string, report: ModelJobReport, lines: (text: string) => string): string {
  const first = text.indexOf(begin)
  const last = text.indexOf(end, first)
  const own = lines(section(report))
  if (first >= 0 && last >= 0) return text.slice(0, first) + own + text.slice(last + end.length)
  const gap = /\n\r?\n$/.test(text) ? '' : text.endsWith('\n') || text === '' ? '\n' : '\n\n'
  return `${text}${lines(gap)}${own}${lines('\n')}`
}

function section(report: ModelJobReport): string {
  const { job, result, evaluation, versions, options, model } = report
  const { given, resolved } = options
  const goal =
    given['pattern'] ?? given['schedule'] ?? given['sparsity'] ?? (given['mask'] ? 'a mask' : undefined)
  const calibration = resolved['calibration'] as Record<string, unknown> | undefined
  const source = hubId(model)
  const rows: [string, unknown][] = [
    ['made of', source && `\`${source}\``],
    ['method', result.method],
    ['asked for', Array.isArray(goal) ? goal.join(', ') : (goal ?? result.sparsity.target)],
    [
      'zeros',
      `${(result.sparsity.achieved * 100).toFixed(2)} % of the weights of ${result.layers.length} layers`,
    ],
    ['bits', resolved['bits']],
    ['calibration windows', calibration?.['samples']],
    ['tokens per window', calibration?.['sequenceLength']],
    ['perplexity before', evaluation?.before?.toFixed(3)],
    ['perplexity after', evaluation?.after?.toFixed(3)],
  ]
  const table = rows.filter(([, value]) => value !== undefined && value !== '')
  const command = commandOf(report)
  // Longer than any run of backticks in it.
  const fence = '`'.repeat(Math.max(3, ...(command.match(/`+/g) ?? []).map(({ length }) => length + 1)))
  return [
    begin,
    '## Sparsity',
    '',
    `${job === 'prune' ? 'Pruned' : 'Trained to be like the dense model, its zeros kept,'} with sparsegpt ${versions.sparsegpt}.`,
    '',
    '| | |',
    '|---|---|',
    ...table.map(([name, value]) => `| ${name} | ${cell(String(value))} |`),
    '',
    `${fence}sh`,
    command.replaceAll(/[\r\n]+/g, ' '),
    fence,
    '',
    `[${reportFiles.json}](${reportFiles.json}) has all options, the hashes of what was read and the results by layer; [${reportFiles.html}](${reportFiles.html}) shows them.`,
    end,
  ].join('\n')
}

const cell = (text: string) => text.replaceAll(/[\r\n]+/g, ' ').replaceAll('|', '\\|')
