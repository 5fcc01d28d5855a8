import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect } from '@jest/globals'
import { SparseGptError, type ErrorCode } from '../src/errors.js'

const folders: string[] = []

afterAll(async () => {
  await Promise.all(folders.splice(0).map((folder) => rm(folder, { recursive: true, force: true })))
})

/** A new empty folder that goes when the test file is done. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'sparsegpt-test-'))
  folders.push(folder)
  return folder
}

/** Awaits a rejection with this code and a message that matches; returns the error. */
export async function expectError(
  promise: Promise<unknown>,
  code: ErrorCode,
  message: RegExp,
): Promise<SparseGptError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  expect(error).toBeInstanceOf(SparseGptError)
  expect((error as SparseGptError).message).toMatch(message)
  expect((error as SparseGptError).code).toBe(code)
  return error as SparseGptError
}
