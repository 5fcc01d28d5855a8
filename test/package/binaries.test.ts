import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { repository } from './installed.js'

const manifest = JSON.parse(readFileSync(join(repository, 'prebuilds', 'manifest.json'), 'utf8')) as {
  binaries: Record<string, { sources: string }>
}
const linux = Object.keys(manifest.binaries).filter((name) => name.startsWith('linux'))
const read = (name: string, ...options: string[]) =>
  execFileSync('readelf', ['--wide', ...options, join(repository, 'prebuilds', name)], { encoding: 'utf8' })
const all = (text: string, pattern: RegExp) => [
  ...new Set([...text.matchAll(pattern)].map(([, found]) => found!)),
]

test('there is a binary for this machine', () => {
  expect(linux).toContain('linux-x64/sparsegpt.glibc.node')
})

test.each(linux)('%s needs the C library and nothing else', (name) => {
  const libraries = all(read(name, '--dynamic'), /\(NEEDED\).*\[(.*)\]/g)
  const ofTheCLibrary = /^(lib(c|m|dl|pthread|rt)\.so(\.\d)?|ld-linux-[\w-]+\.so\.\d)$/
  expect(libraries.filter((library) => !ofTheCLibrary.test(library))).toEqual([])
  expect(libraries.length).toBeGreaterThan(0)
})

test.each(linux.filter((name) => name.includes('glibc')))('%s runs with glibc 2.28', (name) => {
  const versions = all(read(name, '--version-info'), /Name: (\w+_[\d.]+)/g)
  const newer = versions.filter((version) => {
    const [, library, number] = /^(\w+)_2\.(\d+)/.exec(version) ?? []
    return library !== 'GLIBC' || Number(number) > 28
  })
  expect(newer).toEqual([])
  expect(versions.length).toBeGreaterThan(0)
})

test.each(linux)('%s takes from outside only the C library and Node-API', (name) => {
  const undefinedSymbols = all(read(name, '--dyn-syms'), /UND (\w+)/g)
  expect(undefinedSymbols).toContain('napi_create_function')
  // Names of C++ have this form: its library is inside.
  expect(undefinedSymbols.filter((symbol) => symbol.startsWith('_Z'))).toEqual([])
})
