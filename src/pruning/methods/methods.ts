import * as z from 'zod'
import { isMeasured } from '../allocation/names.js'
import type { Method } from './method.js'
import { methodNames, type MethodOptions, type PruningMethod } from './names.js'
import * as registry from './registry.js'

const methods = registry satisfies Record<PruningMethod, unknown>

type Intersection<Union> = (Union extends unknown ? (each: Union) => void : never) extends (
  all: infer All,
) => void
  ? All
  : never
type OptionShapes = Intersection<(typeof methods)[PruningMethod]['options']>

/** Validates MethodOptions; the description of each is the command line's help. */
export const methodOptions = z.object(
  Object.assign({}, ...Object.values(methods).map(({ options }) => options)) as OptionShapes,
) satisfies z.ZodType<unknown, MethodOptions>

export function methodNamed(name: PruningMethod): Method {
  return methods[name]
}

/** Whether weights are fitted to outputs, for which a Gram matrix of the inputs is needed whatever the method. */
export const fitsWeights = (
  o: { refit: boolean; target?: 'own' | 'dense' | undefined },
  method: Pick<Method, 'refits'>,
): boolean => o.refit || o.target === 'dense' || method.refits === true

/** Whether pruning carries the dense model's hidden states beside the pruned model's. */
export const needsDenseStream = (o: {
  target?: 'own' | 'dense' | undefined
  reconstruct?: object | undefined
}): boolean => o.target === 'dense' || o.reconstruct !== undefined

/** Whether pruning needs to know a layer's inputs. */
export const needsInputs = (o: {
  method: PruningMethod
  refit: boolean
  target?: 'own' | 'dense' | undefined
  reconstruct?: object | undefined
  allocation?: unknown
}): boolean =>
  methodNamed(o.method).statistic !== undefined ||
  fitsWeights(o, methodNamed(o.method)) ||
  o.reconstruct !== undefined ||
  isMeasured(o.allocation)

/** The method for a layer of whose inputs nothing is known. */
export const withoutInputs: Method = methods.magnitude

/** The names of the methods that can round weights, for messages. */
export const roundingMethods = methodNames.filter((name) => methods[name].rounds)
