#!/usr/bin/env node
// clang-format over the native sources, with the version that package-lock.json fixes.
//
//   node scripts/clang-format.mjs --check | --write

import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const modes = { '--check': ['--dry-run', '--Werror'], '--write': ['-i'] }
const options = modes[process.argv[2]]
if (!options || process.argv.length !== 3) {
  console.error('usage: node scripts/clang-format.mjs --check | --write')
  process.exit(2)
}

const native = join(root, 'native')
const files = existsSync(native)
  ? readdirSync(native, { recursive: true })
      .filter((name) => /\.(h|cpp|cu|cuh)$/.test(name))
      .map((name) => join('native', name))
      .sort()
  : []
if (files.length > 0) {
  const { clangFormatPath } = createRequire(import.meta.url)('clang-format-node')
  const { status, error } = spawnSync(clangFormatPath, [...options, '--style=file', ...files], {
    cwd: root,
    stdio: 'inherit',
  })
  if (error) console.error(error.message)
  if (status !== 0 && options.includes('--Werror')) console.error('npm run format puts it right')
  process.exit(status ?? 1)
}
