import * as z from 'zod'

/** The option `dampening` of the methods that work with the Hessian. */
export const dampening = z
  .number()
  .min(0)
  .max(1000)
  .optional()
  .describe(
    "added to the Hessian's diagonal, as a share of it (default: 0.01, to fit weights to a dense target 0.1)",
  )
