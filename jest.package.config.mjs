import base from './jest.config.mjs'

// npm run test:package: the tests of what is installed, which take minutes and download.
export default {
  ...base,
  roots: ['<rootDir>/test/package'],
  testPathIgnorePatterns: [],
  testTimeout: 300_000,
}
