import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { appendFileSync, mkdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { repository } from './installed.js'

const binaries = [
  ...['linux-x64/sparsegpt.glibc.node', 'linux-x64/sparsegpt.musl.node', 'linux-arm64/sparsegpt.glibc.node'],
  ...['linux-arm64/sparsegpt.musl.node', 'darwin-x64/sparsegpt.node', 'darwin-arm64/sparsegpt.node'],
]
const sha256 = (data: Buffer | string) => createHash('sha256').update(data).digest('hex')

/** A clone of this repository, with binaries that claim to be of its sources. */
class Clone {
  constructor(readonly folder: string) {
    this.git('clone', '--quiet', repository, '.')
    symlinkSync(join(repository, 'node_modules'), join(folder, 'node_modules'))
    appendFileSync(join(folder, '.git', 'info', 'exclude'), 'node_modules\n')
    const script = "import('./scripts/prebuilds.mjs').then((it) => console.log(it.sourcesDigest()))"
    const sources = execFileSync(process.execPath, ['-e', script], { cwd: folder, encoding: 'utf8' }).trim()
    const manifest: Record<string, object> = {}
    for (const file of binaries) {
      this.write(`prebuilds/${file}`, `the binary ${file}`)
      manifest[file] = { sources, sha256: sha256(`the binary ${file}`) }
    }
    this.write('prebuilds/manifest.json', JSON.stringify({ binaries: manifest }))
    this.write('prebuilds/THIRD-PARTY-LICENCES.txt', 'licences')
  }

  git(...args: string[]): void {
    const identity = ['-c', 'user.name=test', '-c', 'user.email=test@localhost']
    execFileSync('git', [...identity, ...args], { cwd: this.folder, stdio: ['ignore', 'ignore', 'inherit'] })
  }

  write(name: string, text: string): void {
    mkdirSync(dirname(join(this.folder, name)), { recursive: true })
    writeFileSync(join(this.folder, name), text)
  }

  release(...args: string[]): { code: number | null; stderr: string } {
    const script = join(this.folder, 'scripts', 'release.mjs')
    const { status, stderr } = spawnSync(process.execPath, [script, ...args], {
      cwd: this.folder,
      encoding: 'utf8',
    })
    return { code: status, stderr }
  }
}

describe('a release', () => {
  let clone: Clone
  beforeAll(async () => {
    clone = new Clone(await temporaryFolder())
  })

  test('is made of a clean tree with fresh binaries', () => {
    expect(clone.release('--check')).toEqual({ code: 0, stderr: '' })
  })

  test('is refused where a file has changed', () => {
    clone.write('src/new.ts', '')
    const { code, stderr } = clone.release()
    expect(stderr).toMatch(/cannot be released:[^]*differ from the commit[^]*\?\? src\/new\.ts/)
    expect(code).toBe(1)
    clone.git('clean', '--quiet', '--force', 'src')
    expect(clone.release('--check').code).toBe(0)
  })

  test('is refused where a binary is missing, another, or older than the sources', () => {
    clone.git('checkout', '--quiet', '-b', 'stale')
    appendFileSync(join(clone.folder, 'native', 'backends.cpp'), '// changed\n')
    clone.git('commit', '--quiet', '--all', '--message', 'Change')
    expect(clone.release().stderr).toMatch(
      /darwin-arm64\/sparsegpt\.node is stale[^]*npm run prebuildify -- --all/,
    )
    clone.git('checkout', '--quiet', '--detach', 'HEAD~1')
    clone.write('prebuilds/linux-x64/sparsegpt.musl.node', 'another')
    expect(clone.release().stderr).toMatch(
      /linux-x64\/sparsegpt\.musl\.node is not the one that prebuildify made/,
    )
    clone.write('prebuilds/linux-x64/sparsegpt.musl.node', 'the binary linux-x64/sparsegpt.musl.node')
    clone.write('prebuilds/manifest.json', '{ "binaries": {} }')
    const { code, stderr } = clone.release()
    expect(stderr).toMatch(/linux-x64\/sparsegpt\.glibc\.node is missing/)
    expect(code).toBe(1)
  })
})

test('the same commit makes the same tarball, wherever it lies and whenever it is packed', async () => {
  const [one, other] = [new Clone(await temporaryFolder()), new Clone(await temporaryFolder())]
  utimesSync(join(other.folder, 'docs', 'reference.md'), 0, 0)
  other.write('dist/left-over.js', 'of an earlier build')
  const tarballs = [one, other].map((clone) => {
    expect(clone.release('--out', 'out')).toEqual({ code: 0, stderr: '' })
    return readFileSync(join(clone.folder, 'out', 'sparsegpt-0.1.0.tgz'))
  })
  expect(sha256(tarballs[0]!)).toBe(sha256(tarballs[1]!))
  const list = execFileSync('tar', ['-tzf', join(one.folder, 'out', 'sparsegpt-0.1.0.tgz')], {
    encoding: 'utf8',
  })
  for (const file of [...binaries, 'manifest.json', 'README.md', 'THIRD-PARTY-LICENCES.txt'])
    expect(list).toContain(`package/prebuilds/${file}\n`)
  expect(list).not.toContain('left-over')
  expect(list).not.toMatch(/\.map\n|native\/(test|bench)\//)
})
