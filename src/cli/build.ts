import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { Argument, Command } from 'commander'
import { packageFolder } from '../package.js'
import { exitCodes } from './failure.js'

/** The command `sparsegpt build`, which compiles a library that the addon loads at run time. */
export function buildCommand(): Command {
  return new Command('build')
    .description(
      'Compile the CUDA backend (needs nvcc) or the library for MPI (needs mpicxx) on this machine.',
    )
    .addArgument(new Argument('<library>', 'what to compile').choices(['cuda', 'mpi']))
    .option('--optional', 'where the compiler for it is missing, say so and succeed')
    .action(async (library: string, { optional }: { optional?: true }) => {
      const script = join(packageFolder, 'scripts', `build-${library}.mjs`)
      const args = optional ? ['--optional'] : []
      const child = spawn(process.execPath, [script, ...args], { stdio: 'inherit' })
      const [code] = (await once(child, 'close')) as [number | null]
      // The script has said what went wrong.
      process.exitCode = code ?? exitCodes.failed
    })
}
