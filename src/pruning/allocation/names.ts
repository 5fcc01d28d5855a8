/** How a goal is spread over a model's blocks; all but 'uniform' by what a pass of the dense model over the calibration text shows. */
export const allocationNames = ['uniform', 'owl', 'sensitivity'] as const

export type AllocationName = (typeof allocationNames)[number]

/** Whether an allocation is measured, for which it needs calibration text. */
export const isMeasured = (allocation: unknown): allocation is Exclude<AllocationName, 'uniform'> =>
  allocation === 'owl' || allocation === 'sensitivity'
