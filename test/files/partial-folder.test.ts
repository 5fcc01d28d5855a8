import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeEach, expect, test } from '@jest/globals'
import { Journal } from '../../src/files/journal.js'
import { OutputFolder } from '../../src/files/output-folder.js'
import { PartialFolder } from '../../src/files/partial-folder.js'
import { expectError, temporaryFolder } from '../temporary.js'

let work: string
let out: string
beforeEach(async () => {
  work = await temporaryFolder()
  out = join(work, 'out')
})

const create = (options: { force?: boolean; resume?: boolean } = {}) =>
  OutputFolder.create(out, { force: false, keep: [], bytes: 0, ...options })

/** A partial folder that a job has left with some finished blocks. */
async function left(blocks: number): Promise<PartialFolder> {
  const partial = PartialFolder.create(out)
  const journal = await Journal.create(partial.path, {})
  for (let i = 0; i < blocks; i++) await journal.append({ weights: [], block: i })
  await journal.close()
  await writeFile(join(partial.files, 'weights'), 'new')
  await partial.release()
  return partial
}

test('one without a finished block is removed by the next job', async () => {
  const partial = await left(0)
  const folder = await create()
  expect(folder.resumed).toBe(false)
  expect(await readdir(work)).not.toContain(partial.path)
  await folder.discard()
  expect(await readdir(work)).toEqual([])
})

test('one whose journal is a folder is removed, too', async () => {
  const { path } = await left(0)
  await rm(join(path, 'journal'))
  await mkdir(join(path, 'journal'))
  await (await create()).discard()
  expect(await readdir(work)).toEqual([])
})

test('of several the one with most finished blocks is resumed, and the others go', async () => {
  for (const blocks of [1, 3, 2]) await left(blocks)
  const folder = await create({ resume: true })
  expect(folder.resumed).toBe(true)
  expect(await readdir(work)).toHaveLength(1)
  const lines = (await readFile(join(folder.partial.path, 'journal'), 'utf8')).trimEnd().split('\n')
  expect(lines).toHaveLength(4)
})

test('what was killed before it was put in its place is resumed', async () => {
  const partial = await left(2)
  await partial.announcePublication()
  await mkdir(out)
  await expectError(create({ resume: true }), 'OUTPUT_EXISTS', /out exists/)
  const folder = await create({ resume: true, force: true })
  expect(folder.resumed).toBe(true)
  expect(await readFile(join(folder.temporary, 'weights'), 'utf8')).toBe('new')
})

test('what was killed after its files had become the output is tidied up and not resumed', async () => {
  const partial = await left(2)
  await partial.announcePublication()
  await rename(partial.files, out)
  await expectError(create({ resume: true }), 'OUTPUT_EXISTS', /out exists/)
  expect(await readdir(work)).toEqual(['out'])
})

test('what was killed while it tidied up goes even where the next job is refused', async () => {
  await left(0)
  await mkdir(out)
  for (const attempt of [() => create(), () => OutputFolder.check(out, { force: false, resume: true })]) {
    await expectError(attempt(), 'OUTPUT_EXISTS', /out exists/)
    expect(await readdir(work)).toEqual(['out'])
    await left(0)
  }
})

test('what the output has changed places with is not taken for its files', async () => {
  const partial = await left(2)
  await mkdir(out)
  await writeFile(join(out, 'weights'), 'old')
  for (const name of ['config.json', 'model.safetensors']) await writeFile(join(partial.files, name), '')
  await partial.announcePublication()
  await rename(out, join(work, 'aside'))
  await rename(partial.files, out)
  await rename(join(work, 'aside'), partial.files)
  const folder = await create({ resume: true, force: true })
  expect(folder.resumed).toBe(false)
  expect(await readdir(folder.temporary)).toEqual([])
  expect(await readFile(join(out, 'weights'), 'utf8')).toBe('new')
})

test('of jobs that begin at the same time one at most goes on', async () => {
  const begun = await Promise.allSettled([create(), create(), create()])
  const folders = begun.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  expect(folders.length).toBeLessThanOrEqual(1)
  for (const one of begun) {
    if (one.status === 'rejected') expect(one.reason).toMatchObject({ code: 'OUTPUT_EXISTS' })
  }
  for (const folder of folders) await folder.discard()
  expect(await readdir(work)).toEqual([])
})

test('the end of the process removes one without a finished block and leaves any other to be resumed', async () => {
  const first = await create()
  first.endSync()
  expect(await readdir(work)).toEqual([])
  await first.discard()
  await left(1)
  const second = await create({ resume: true })
  second.endSync()
  expect((await create({ resume: true })).resumed).toBe(true)
})

test('of a process that cannot be seen: the user decides', async () => {
  const partial = await left(1)
  await writeFile(
    join(partial.path, 'owner.json'),
    JSON.stringify({ pid: process.pid, machine: 'elsewhere', started: '1' }),
  )
  const message = new RegExp(`process ${process.pid} of another machine.*--resume.*--force`)
  await expectError(create(), 'OUTPUT_EXISTS', message)
  expect((await create({ resume: true })).resumed).toBe(true)
})

test('of a process whose number another one has got', async () => {
  const partial = PartialFolder.create(out)
  const file = join(partial.path, 'owner.json')
  const owner = JSON.parse(await readFile(file, 'utf8')) as object
  await expectError(create(), 'OUTPUT_EXISTS', /is writing/)
  await writeFile(file, JSON.stringify({ ...owner, started: '1' }))
  const folder = await create()
  expect(await readdir(work)).toEqual([folder.partial.path.slice(work.length + 1)])
})
