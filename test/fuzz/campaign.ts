import { fork, type ChildProcess } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { calibrationTokens, inputOf, writeInput, type Kind, type Stopped } from './inputs.js'

/** What is tried: inputs from the number `seed` on, until so many are done or the time is over. */
export interface Campaign {
  seed: number
  inputs: number
  seconds: number
  /** The number of processes side by side. */
  processes: number
  stopped: Stopped
  onFault?: (fault: Fault) => void
}

export interface Fault {
  seed: number
  kind: Kind
  what: string
  /** The work folder, as it was before. */
  kept: string
}

export interface Result {
  inputs: number
  /** The number of inputs by kind, and by what became of them: the call that refused it first, and how, or 'accepted'. */
  counts: Map<Kind, Map<string, number>>
  faults: Fault[]
  /** The largest resident memory of a process, in bytes. */
  peakBytes: number
}

const program = fileURLToPath(new URL('exercise.mjs', import.meta.url))

const maxBytes = 1e9
const maxMilliseconds = 20_000
const watchMilliseconds = 100

const tooSlow = `took more than ${maxMilliseconds / 1000} s`

interface Answer {
  outcomes: Record<string, string>
  faults: string[]
}

export async function runCampaign(campaign: Campaign): Promise<Result> {
  const { seed, inputs, seconds, processes, stopped, onFault } = campaign
  const end = performance.now() + seconds * 1000
  const result: Result = { inputs: 0, counts: new Map(), faults: [], peakBytes: 0 }
  const parent = await mkdtemp(join(tmpdir(), 'sparsegpt-fuzz-'))
  const exercisers = Array.from({ length: processes }, () => new Exerciser())
  let next = seed
  const work = async (exerciser: Exerciser) => {
    const folder = await mkdtemp(join(parent, 'work-'))
    while (next < seed + inputs && performance.now() < end) {
      const input = inputOf(next++, stopped)
      await rm(folder, { recursive: true })
      await writeInput(input, folder)
      let { answer, death } = await exerciser.exercise(folder)
      if (death === tooSlow) {
        // The machine may be busy: it is a fault if it happens again.
        await rm(folder, { recursive: true })
        await writeInput(input, folder)
        ;({ answer, death } = await exerciser.exercise(folder))
      }
      result.inputs++
      const outcome = death === undefined ? outcomeOf(answer!) : 'died'
      const counts = result.counts.get(input.kind) ?? new Map<string, number>()
      result.counts.set(input.kind, counts.set(outcome, (counts.get(outcome) ?? 0) + 1))
      const faults = death === undefined ? answer!.faults : [death]
      if (faults.length === 0) continue
      const kept = await mkdtemp(join(tmpdir(), `sparsegpt-fault-${input.seed}-`))
      await writeInput(input, kept)
      const fault = { seed: input.seed, kind: input.kind, what: faults.join('\n'), kept }
      result.faults.push(fault)
      onFault?.(fault)
    }
  }
  try {
    await Promise.all(exercisers.map(work))
  } finally {
    for (const exerciser of exercisers) exerciser.end()
    await rm(parent, { recursive: true, force: true })
  }
  result.peakBytes = Math.max(...exercisers.map(({ peakBytes }) => peakBytes))
  return result
}

function outcomeOf({ outcomes }: Answer): string {
  const refused = Object.entries(outcomes).find(([, outcome]) => outcome !== 'ok')
  return refused ? refused.join(': ') : 'accepted'
}

/** Starts a process that runs exercise.mjs, and ends with its channel to this one. */
export function startExercise(): ChildProcess {
  return fork(program, {
    // Not Jest's.
    execArgv: [],
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
}

/** A process that runs exercise.mjs; another takes its place when it dies. */
class Exerciser {
  /** The largest resident memory of the processes so far, in bytes. */
  peakBytes = 0
  private child: ChildProcess | undefined

  /** What became of a work folder; `death` says how the process died of it. */
  exercise(folder: string): Promise<{ answer?: Answer; death?: string }> {
    const child = (this.child ??= startExercise())
    return new Promise((done) => {
      let stderr = ''
      let reason: string | undefined
      const kill = (why: string) => {
        reason ??= why
        child.kill('SIGKILL')
      }
      const look = () => {
        const bytes = peakBytes(child.pid!)
        this.peakBytes = Math.max(this.peakBytes, bytes)
        if (bytes > maxBytes) kill(`took ${(bytes / 1e9).toFixed(2)} GB of memory`)
      }
      const watch = setInterval(look, watchMilliseconds)
      const timer = setTimeout(() => kill(tooSlow), maxMilliseconds)
      const onStderr = (text: Buffer) => (stderr += text.toString())
      const settle = (result: { answer?: Answer; death?: string }) => {
        clearInterval(watch)
        clearTimeout(timer)
        child.stderr!.off('data', onStderr)
        child.off('message', onMessage).off('close', onClose)
        done(result)
      }
      const onMessage = (answer: Answer) => {
        look()
        if (reason === undefined) settle({ answer })
      }
      const onClose = (code: number | null, signal: string | null) => {
        this.child = undefined
        settle({
          death: reason ?? `the process ended with ${signal ?? `code ${code}`}: ${stderr.slice(-2000)}`,
        })
      }
      child.stderr!.on('data', onStderr)
      child.on('message', onMessage).on('close', onClose)
      child.send({ folder, tokens: calibrationTokens })
    })
  }

  end(): void {
    this.child?.kill()
  }
}

/** The largest resident memory that a process or one that it has started has had, in bytes; 0 where the system does not say. */
function peakBytes(pid: number): number {
  try {
    const [, kilobytes = '0'] = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean)
    return Math.max(Number(kilobytes) * 1024, ...children.map((child) => peakBytes(Number(child))))
  } catch {
    // It has ended.
    return 0
  }
}
