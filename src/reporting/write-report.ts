import { join } from 'node:path'
import { readIfThere } from '../files/regular-file.js'
import { replaceFile } from '../files/replace-file.js'
import { modelJobPage } from './model-job-page.js'
import { reportFiles, reportIn, reportText, type Evaluation, type ModelJobReport } from './report.js'

export const readmeFile = 'README.md'
const maxReadmeBytes = 2 ** 24

/** The files that the report of a job is, for a model whose source is `folder`. A README.md beyond all measure stays as it is. */
export async function reportTexts(folder: string, report: ModelJobReport): Promise<Map<string, string>> {
  const texts = new Map<string, string>([[reportFiles.json, reportText(report)]])
  // What cannot be read is left alone.
  const readme = await readIfThere(join(folder, readmeFile), maxReadmeBytes).catch(() => null)
  if (readme === null) return texts
  // With a reader of YAML, which most commands do without.
  const { modelCard } = await import('./model-card.js')
  texts.set(readmeFile, modelCard(readme ?? '', report))
  return texts
}

/** Writes the report of a job, and what is made of it, into the model's folder. Throws WRITE_FAILED. */
export async function rewriteReport(folder: string, report: ModelJobReport): Promise<void> {
  for (const [name, text] of await reportTexts(folder, report)) await replaceFile(join(folder, name), text)
  await replaceFile(join(folder, reportFiles.html), await modelJobPage(report))
}

/** Adds perplexities to the report in a model's folder. Throws FILE_NOT_FOUND, INVALID_OPTION, WRITE_FAILED. */
export async function recordEvaluation(folder: string, evaluation: Evaluation): Promise<void> {
  await rewriteReport(folder, { ...(await reportIn(folder)), evaluation })
}
