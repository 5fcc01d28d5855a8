import { execFileSync, spawn, spawnSync, type ExecFileSyncOptions } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const repository = fileURLToPath(new URL('../..', import.meta.url))

/** How a program ended, and what it said. */
export interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

/** The path of a program of this machine, '' where there is none. */
export const programOf = (name: string) =>
  execFileSync('/bin/sh', ['-c', `command -v ${name} || true`], { encoding: 'utf8' }).trim()

/** Packs the working tree, whose dist/ is fresh, into `folder` and returns the tarball's path. */
export function pack(folder: string): string {
  const options: ExecFileSyncOptions = { cwd: repository, stdio: ['ignore', 'ignore', 'inherit'] }
  execFileSync(process.execPath, ['scripts/release.mjs', '--commit'], options)
  execFileSync('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', folder], options)
  return join(
    folder,
    readdirSync(folder).find((name) => name.endsWith('.tgz'))!,
  )
}

/**
 * The project of a user who has Node and npm and nothing else: no compiler on the PATH, nothing in the home folder. `node`: the
 * program that runs there.
 */
export class Project {
  readonly #bin: string
  readonly #environment: NodeJS.ProcessEnv

  constructor(
    readonly folder: string,
    node = process.execPath,
  ) {
    this.#bin = mkdtempSync(join(folder, '.bin-'))
    symlinkSync(node, join(this.#bin, 'node'))
    for (const name of ['npm', 'npx']) symlinkSync(realpathSync(programOf(name)), join(this.#bin, name))
    symlinkSync('/bin/sh', join(this.#bin, 'sh'))
    const home = join(folder, '.home')
    mkdirSync(home, { recursive: true })
    const { NODE_EXTRA_CA_CERTS: certificates } = process.env
    this.#environment = {
      PATH: this.#bin,
      HOME: home,
      ...(certificates && { NODE_EXTRA_CA_CERTS: certificates }),
    }
  }

  write(name: string, text: string): void {
    writeFileSync(join(this.folder, name), text)
  }

  /** Runs a program of the project's PATH, or of a path of its own. */
  run(program: string, args: string[], environment: NodeJS.ProcessEnv = {}): Ended {
    const { status, stdout, stderr, error } = spawnSync(
      program.includes('/') ? program : join(this.#bin, program),
      args,
      {
        cwd: this.folder,
        env: { ...this.#environment, ...environment },
        encoding: 'utf8',
        maxBuffer: 2 ** 26,
      },
    )
    return { code: status, stdout, stderr: stderr + (error?.message ?? '') }
  }

  /** Starts a program that goes on running. */
  start(program: string, args: string[]) {
    return spawn(join(this.#bin, program), args, {
      cwd: this.folder,
      env: this.#environment,
      stdio: ['ignore', 'pipe', 'inherit'],
    })
  }
}

/** The Node versions that are tested: the oldest of 20 and of 22 that the package takes, and the newest 24. */
const versions = ['20.19.0', '22.12.0', '24']

/** Downloads the Node versions into build/ where they are not there yet, and returns their programs by version. */
export function nodes(): [string, string][] {
  const name = `node-${process.platform}-${process.arch}`
  return versions.map((version) => {
    const folder = join(repository, 'build', 'nodes', version)
    const program = join(folder, 'node_modules', name, 'bin', 'node')
    if (!existsSync(program)) {
      mkdirSync(folder, { recursive: true })
      const args = ['install', '--prefix', folder, '--no-audit', '--no-fund', '--loglevel=error']
      execFileSync('npm', [...args, `${name}@${version}`], { stdio: ['ignore', 'ignore', 'inherit'] })
    }
    return [version, program]
  })
}
