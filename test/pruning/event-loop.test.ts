import { expect, test } from '@jest/globals'
import { pruneLayer } from '../../src/index.js'

test('the event loop stays responsive while a layer of 2048 × 2048 is pruned', async () => {
  const n = 2048
  const weight = Float32Array.from({ length: n * n }, (_, i) => Math.sin(i * 12.9898))
  const hessian = new Float32Array(n * n)
  for (let i = 0; i < n; i++) hessian[i * n + i] = 1 + (i % 7)

  // How late each tick of a 10 ms timer is; the last one is the gap that is still open when the work ends.
  let last = performance.now()
  let latest = 0
  let ticks = 0
  const tick = () => {
    const now = performance.now()
    latest = Math.max(latest, now - last - 10)
    last = now
    ticks++
  }
  const timer = setInterval(tick, 10)
  const start = performance.now()
  await pruneLayer({ weight, rows: n, columns: n, hessian, sparsity: 0.5, threads: 1 })
  const elapsed = performance.now() - start
  clearInterval(timer)
  tick()
  expect(elapsed).toBeGreaterThan(100) // else the test shows nothing
  expect(ticks).toBeGreaterThan(elapsed / 60)
  expect(latest).toBeLessThan(50)
})
