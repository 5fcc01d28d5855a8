import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { readSafetensorsHeader } from '../../src/files/safetensors.js'
import { readTorchFile } from '../../src/files/torch-file.js'
import { expectError, temporaryFolder } from '../temporary.js'

async function headerFile(json: string): Promise<string> {
  const file = join(await temporaryFolder(), 'model.safetensors')
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  await writeFile(file, Buffer.concat([length, Buffer.from(json)]))
  return file
}

const code = 'INVALID_CHECKPOINT'
const entry = '{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'

test.each<[string, () => string, RegExp]>([
  ['nested deeply', () => `{"a":${'['.repeat(49e6)}${']'.repeat(49e6)}}`, /nested more than 32 levels/],
  [
    'of too many entries',
    () => `{${Array.from({ length: 1_900_000 }, (_, i) => `"t${i}":${entry}`).join(',')}}`.slice(0, 99e6),
    /more than 524288 entries/,
  ],
  ['of fractions', () => `{"a":[${'1.5,'.repeat(24e6)}1]}`, /not a plain integer/],
])('a header of 99 MB %s is refused within seconds', async (_name, json, message) => {
  const file = await headerFile(json())
  const before = process.cpuUsage()
  await expectError(readSafetensorsHeader(file), code, message)
  expect(process.cpuUsage(before).user / 1e6).toBeLessThan(15)
})

test('a header of many tensors is read', async () => {
  const count = 100_000
  const json = `{${Array.from({ length: count }, (_, i) => `"t${i}":${entry}`).join(',')}}`
  expect((await readSafetensorsHeader(await headerFile(json))).tensors).toHaveLength(count)
})

test('an archive of 1.2 million entries is refused at once', async () => {
  const count = 1_200_000
  const directory = Buffer.alloc(46 * count)
  const locator = Buffer.alloc(20)
  const end64 = Buffer.alloc(56)
  const end = Buffer.alloc(22)
  end64.writeUInt32LE(0x06064b50, 0)
  end64.writeBigUInt64LE(BigInt(count), 32)
  end64.writeBigUInt64LE(BigInt(directory.length), 40)
  locator.writeUInt32LE(0x07064b50, 0)
  locator.writeBigUInt64LE(BigInt(directory.length), 8)
  end.writeUInt32LE(0x06054b50, 0)
  end.fill(0xff, 8, 20)
  const file = join(await temporaryFolder(), 'pytorch_model.bin')
  await writeFile(file, Buffer.concat([directory, end64, locator, end]))
  await expectError(readTorchFile(file), code, /has 1200000 entries; allowed are 131072/)
})
