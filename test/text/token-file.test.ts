import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { readTokenFile, saveTokens } from '../../src/text/token-file.js'
import { writeSafetensors, type TestTensor } from '../files/files.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'

const file = async () => join(await temporaryFolder(), 'tokens.safetensors')

describe('saveTokens', () => {
  test('keeps a text, as one I32 tensor', async () => {
    const path = await file()
    const ids = Int32Array.from({ length: 1000 }, (_, i) => (i * 7) % 100)
    await saveTokens(path, ids)
    expect(await readTokenFile(path, 100)).toEqual({ ids })
    expect([...(await readTensors(path)).keys()]).toEqual(['tokens'])
  })

  test('keeps windows, also views of a longer array', async () => {
    const path = await file()
    const text = Int32Array.from({ length: 10 }, (_, i) => i)
    await saveTokens(path, [text.subarray(1, 4), text.subarray(5, 8)])
    expect(await readTokenFile(path, 10)).toEqual({ ids: Int32Array.of(1, 2, 3, 5, 6, 7), windowLength: 3 })
  })

  test('refuses another name, windows of different lengths and a folder that is not there', async () => {
    const ids = Int32Array.of(1)
    await expectError(saveTokens('tokens.bin', ids), 'INVALID_OPTION', /must end in \.safetensors/)
    await expectError(saveTokens(await file(), [ids, Int32Array.of(1, 2)]), 'INVALID_OPTION', /equal length/)
    await expectError(saveTokens('/nowhere/x.safetensors', ids), 'WRITE_FAILED', /\/nowhere\/x/)
  })
})

describeWithShared('ids beyond 32 bits', () => {
  test('are refused with their place', async () => {
    const path = sharedPath('cases', 'token-ids-beyond-int32.safetensors')!
    await expectError(readTokenFile(path, 2 ** 31 - 1), 'INVALID_TEXT', /token id \d{10,} at position \d+/)
  })
})

describe('readTokenFile', () => {
  const write = async (tensor: Partial<TestTensor>) => {
    const path = await file()
    const ids = new Uint8Array(Int32Array.of(1, 2, 3, 4).buffer)
    await writeSafetensors(path, [{ name: 'tokens', dtype: 'I32', shape: [4], data: ids, ...tensor }])
    return path
  }

  test('reads I64, as PyTorch writes it', async () => {
    const data = new Uint8Array(BigInt64Array.of(5n, 6n).buffer)
    const path = await write({ dtype: 'I64', shape: [2], data })
    expect(await readTokenFile(path, 10)).toEqual({ ids: Int32Array.of(5, 6) })
  })

  test.each<[string, Partial<TestTensor>, RegExp]>([
    ['another name', { name: 'ids' }, /no token file.*tensor "tokens"/],
    ['another dtype', { dtype: 'F32' }, /no token file/],
    ['three dimensions', { shape: [1, 2, 2] }, /no token file/],
  ])('refuses a tensor of %s', async (_title, tensor, message) => {
    await expectError(readTokenFile(await write(tensor), 10), 'INVALID_TEXT', message)
  })

  test('refuses ids of another vocabulary', async () => {
    await expectError(readTokenFile(await write({}), 4), 'INVALID_TEXT', /id 4 at position 3.*4 entries/)
    const data = new Uint8Array(BigInt64Array.of(-1n).buffer)
    const negative = await write({ dtype: 'I64', shape: [1], data })
    await expectError(readTokenFile(negative, 4), 'INVALID_TEXT', /id -1 at position 0/)
  })

  test('refuses ids that 32 bits would make valid', async () => {
    const data = new Uint8Array(BigInt64Array.of(3n, 2n ** 32n + 2n).buffer)
    const path = await write({ dtype: 'I64', shape: [2], data })
    await expectError(readTokenFile(path, 4), 'INVALID_TEXT', /id 4294967298 at position 1/)
  })

  test('refuses a damaged and a missing file', async () => {
    const path = await file()
    await writeFile(path, 'x')
    await expectError(readTokenFile(path, 4), 'INVALID_CHECKPOINT', /tokens\.safetensors/)
    await expectError(readTokenFile('/nowhere/x.safetensors', 4), 'FILE_NOT_FOUND', /nowhere/)
  })
})
