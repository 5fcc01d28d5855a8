import { lstat, mkdir } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { SparseGptError } from '../errors.js'
import { reason } from '../files/read-error.js'
import { replaceFile } from '../files/replace-file.js'
import { header, reportFiles, reportText, type MeasurementReport } from './report.js'

/** Where a measurement goes, and whether an earlier report there is replaced. */
export interface MeasurementFolder {
  out: string
  force: boolean
}

/** Throws OUTPUT_EXISTS unless a measurement may be written to the folder; before the work, so that it is not done for nothing. */
export async function checkMeasurementFolder({ out, force }: MeasurementFolder): Promise<void> {
  const path = resolve(out)
  const stats = await lstat(path).catch(() => undefined)
  if (stats && !stats.isDirectory() && !stats.isSymbolicLink())
    throw new SparseGptError('OUTPUT_EXISTS', `out: ${path} is not a folder: give another one`)
  if (!force && existsSync(join(path, reportFiles.json))) {
    const message = `out: ${path} has a report already: give another folder, or force (--force) to replace it`
    throw new SparseGptError('OUTPUT_EXISTS', message)
  }
}

/** Writes a measurement, and its page, into a folder, which is made if it is not there. Throws WRITE_FAILED. */
export async function writeMeasurement<Result>(
  out: string,
  job: 'compare' | 'sweep' | 'sensitivity',
  options: Record<string, unknown>,
  result: Result,
  page: (result: Result) => Promise<string>,
): Promise<void> {
  const folder = resolve(out)
  const report: MeasurementReport<typeof job, Result> = { ...header(job), options, result }
  await mkdir(folder, { recursive: true }).catch((error: unknown) => {
    throw new SparseGptError('WRITE_FAILED', `cannot create the folder ${folder}: ${reason(error)}`, {
      cause: error,
    })
  })
  await replaceFile(join(folder, reportFiles.json), reportText(report))
  await replaceFile(join(folder, reportFiles.html), await page(result))
}
