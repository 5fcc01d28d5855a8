import { existsSync, readFileSync } from 'node:fs'
import { expect, test } from '@jest/globals'
import { pruneLayer } from '../../src/index.js'

test('the event loop stays responsive while a layer of 2048 × 2048 is pruned', async () => {
  const n = 2048
  const weight = Float32Array.from({ length: n * n }, (_, i) => Math.sin(i * 12.9898))
  const hessian = new Float32Array(n * n)
  for (let i = 0; i < n; i++) hessian[i * n + i] = 1 + (i % 7)

  // What else runs on the machine can make a timer late, but not each time; work on the event loop would.
  for (let attempt = 1; ; attempt++) {
    const { elapsed, ticks, latest } = await timed(() =>
      pruneLayer({ weight, rows: n, columns: n, hessian, sparsity: 0.5, threads: 1 }),
    )
    expect(elapsed).toBeGreaterThan(100) // else the test shows nothing
    if (latest >= 50 && attempt < 12) continue
    expect(latest).toBeLessThan(50)
    expect(ticks).toBeGreaterThan(elapsed / 60)
    return
  }
})

/**
 * How late the ticks of a 10 ms timer are while `work` runs, in milliseconds without those in which the thread waited for a
 * processor; the last gap ends with the work. `elapsed` is without them, too.
 */
async function timed(work: () => Promise<unknown>) {
  const now = () => performance.now() - waited()
  let last = now()
  let latest = 0
  let ticks = 0
  const tick = () => {
    const at = now()
    latest = Math.max(latest, at - last - 10)
    last = at
    ticks++
  }
  const timer = setInterval(tick, 10)
  const start = last
  await work()
  const elapsed = now() - start
  clearInterval(timer)
  tick()
  return { elapsed, ticks, latest }
}

/** Milliseconds in which this thread, the process's first, could have run but other threads had the processors; 0 where it is not told. */
function waited(): number {
  const file = `/proc/self/task/${process.pid}/schedstat`
  return existsSync(file) ? Number(readFileSync(file, 'utf8').split(' ')[1]) / 1e6 : 0
}
