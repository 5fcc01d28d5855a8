// The pruning methods: a line each.
export { admm } from './admm.js'
export { magnitude } from './magnitude.js'
export { sparsegpt } from './sparsegpt.js'
export { wanda } from './wanda.js'
