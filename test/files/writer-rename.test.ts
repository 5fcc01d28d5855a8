import * as actual from 'node:fs/promises'
import { join } from 'node:path'
import { expect, jest, test } from '@jest/globals'
import { filled, writeConfig, writeSafetensors } from './files.js'
import { temporaryFolder } from '../temporary.js'

// The rename to `out` cannot be made to fail from outside once the checks have passed, so it is replaced here, in a system in
// which two folders cannot change places.
const rename = jest.fn(actual.rename)
jest.unstable_mockModule('node:fs/promises', () => ({ ...actual, default: actual, rename }))
const addon = await import('../../src/native/addon.js')
jest.unstable_mockModule('../../src/native/addon.js', () => ({
  nativeAddon: () => ({ ...addon.nativeAddon(), exchangePaths: () => false }),
}))
const { openCheckpoint } = await import('../../src/files/checkpoint.js')
const { CheckpointWriter } = await import('../../src/files/writer.js')

test('when the last rename fails, the folder that force would replace is put back', async () => {
  const work = await temporaryFolder()
  const [folder, out] = [join(work, 'source'), join(work, 'out')]
  await actual.mkdir(folder)
  await writeConfig(folder)
  await writeSafetensors(join(folder, 'model.safetensors'), [filled('a', 5, 1)])
  await actual.cp(folder, out, { recursive: true })
  await actual.writeFile(join(out, 'old.txt'), 'old')
  const writer = await CheckpointWriter.create(await openCheckpoint(folder), out, { force: true })
  rename.mockImplementation(async (from, to) => {
    if (/\.partial-[^/]*\/model$/.test(String(from)))
      throw Object.assign(new Error('EIO: rename'), { code: 'EIO' })
    await actual.rename(from, to)
  })
  await expect(writer.commit()).rejects.toMatchObject({ code: 'WRITE_FAILED' })
  expect(rename).toHaveBeenCalledTimes(3)
  expect(await actual.readdir(out)).toEqual(['config.json', 'model.safetensors', 'old.txt'])
  expect((await actual.readdir(work)).sort()).toEqual(['out', 'source'])
  await writer.abort()
})
