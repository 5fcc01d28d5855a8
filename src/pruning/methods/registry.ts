// The pruning methods: a line each.
export { magnitude } from './magnitude.js'
export { sparsegpt } from './sparsegpt.js'
export { wanda } from './wanda.js'
