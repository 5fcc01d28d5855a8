import { spawn } from 'node:child_process'

/** The built package, as users import it. */
export const packageUrl = new URL('../../dist/index.js', import.meta.url).href

/** How a child process ended, and what it said. */
export interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

/** Runs `script`, an ES module, in a process of its own. */
export function runScript(script: string): Promise<Ended> {
  return new Promise((done, fail) => {
    const child = spawn(process.execPath, ['--expose-gc', '--input-type=module', '--eval', script], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
    child.on('error', fail)
    child.on('close', (code, signal) => done({ code, signal, stdout, stderr }))
  })
}
