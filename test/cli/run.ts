import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

/** The built program, as users run it; `npm test` builds it first. */
export const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

export interface Run {
  code: number | null
  stdout: string
  stderr: string
}

/** Runs the command line; `onStart` may look at what it says meanwhile, and send signals. */
export function sparsegpt(
  args: string[],
  onStart?: (kill: (signal: NodeJS.Signals) => void, stderr: () => string) => void,
  environment: NodeJS.ProcessEnv = {},
): Promise<Run> {
  return new Promise<Run>((done, fail) => {
    const child = spawn(process.execPath, [program, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...environment },
    })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
    child.on('error', fail)
    child.on('close', (code) => done({ code, stdout, stderr }))
    onStart?.(
      (signal) => child.kill(signal),
      () => stderr,
    )
  })
}
