// Installs packages of the system where that needs no question.

import { spawnSync } from 'node:child_process'
import { findProgram, isDebianLike } from './toolchain.mjs'

/**
 * Installs Debian packages: on Debian and its descendants, as root or with a sudo that asks no password. Does nothing elsewhere; the caller looks
 * whether what it wanted is there.
 */
export function installDebianPackages(names) {
  const isRoot = process.getuid?.() === 0
  const sudo = !isRoot && findProgram('sudo')
  const allowed = isRoot || (sudo && spawnSync(sudo, ['-n', 'true'], { stdio: 'ignore' }).status === 0)
  if (!isDebianLike() || !allowed) return
  console.log(`setup: apt-get install ${names.join(' ')}`)
  // stdout would drown the rest; what goes wrong is on stderr.
  const options = {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  }
  const apt = (...args) => {
    const command = ['apt-get', '-qq', ...args]
    if (isRoot) spawnSync(command[0], command.slice(1), options)
    else spawnSync(sudo, ['-n', 'DEBIAN_FRONTEND=noninteractive', ...command], options)
  }
  apt('update')
  apt('install', '-y', '--no-install-recommends', ...names)
}
