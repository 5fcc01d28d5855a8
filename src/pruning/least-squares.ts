import type { Device, Tensor } from '../native/device.js'

/** What a fit of the kept weights came to. */
export interface Fit {
  /** The error tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) before the fit. */
  before: number
  /** The same after it; the same number where nothing was fitted. */
  after: number
  /** The iterations of conjugate gradients; 0 where nothing was fitted. */
  iterations: number
}

/** The most iterations of conjugate gradients. */
const iterations = 60

/**
 * The least-squares problems of matrices that share an input, with H the Gram matrix of the input, damped by a share of each
 * diagonal entry. It is factored with its columns scaled to a unit diagonal, and weights are solved in that scale.
 */
export class LeastSquares {
  private readonly norms: Tensor
  /** The report of the factorisation, as factorHessian makes it. */
  readonly report: Tensor

  /**
   * `factor`: the upper triangle of the Gram matrix, float32 [columns, columns], which is overwritten with its factor. Tensors go into
   * the device's scope.
   */
  constructor(
    private readonly device: Device,
    private readonly factor: Tensor,
    dampening: number,
  ) {
    this.norms = device.normalizeGram(factor)
    this.report = device.factorHessian(factor, dampening).report
  }

  /** Scales `weight`, [rows, columns], in place: there the columns of H have unit length. */
  enter(weight: Tensor): void {
    this.device.scaleColumns(weight, this.norms)
  }

  /** Takes the scale of enter() away, in place; weights of inputs that are always zero become zero. */
  leave(weight: Tensor): void {
    this.device.scaleColumns(weight, this.norms, { inverse: true })
  }

  /** The product x H⁻¹, for x in the scale of enter(). */
  solve(x: Tensor): Tensor {
    const { device, factor } = this
    return device.tidy(() => {
      const half = device.triangularProduct(x, factor, { inverse: true, transposed: true })
      return device.triangularProduct(half, factor, { inverse: true })
    })
  }

  /**
   * The weights, in the scale of enter(), that bring the outputs for the pruned stream's inputs x as near as they can to W (x + α
   * (y − x)), y being the dense stream's: W + α W S H⁻¹, S = Σ (y − x) xᵀ. `shift`: Sᵀ, float32 [columns, columns].
   */
  towards(weight: Tensor, shift: Tensor, alpha: number): Tensor {
    const { device } = this
    return device.tidy(() => {
      const wanted = device.linear(weight, shift)
      device.scale(wanted, alpha)
      this.leave(wanted)
      const goal = this.solve(wanted)
      const scaled = device.cast(weight, 'float32')
      this.enter(scaled)
      device.add(goal, scaled)
      return goal
    })
  }

  /**
   * Fits the entries of `weight` that are not zero: least (goal − weight) H (goal − weight)ᵀ. `goal`: in the scale of enter();
   * `tolerance`: the share of the gradient that may be left, undefined to fit nothing. Enqueues, and resolves to what came of it.
   */
  fit(weight: Tensor, goal: Tensor, tolerance: number | undefined): Promise<Fit> {
    const { device, factor } = this
    const product = (x: Tensor) => device.triangularProduct(x, factor)
    const gap = () =>
      device.tidy(() => {
        const difference = device.cast(weight, 'float32')
        device.scale(difference, -1)
        device.add(difference, goal)
        return product(difference)
      })
    const whole = this.squares(() => product(goal))
    const mask = device.markZeros(weight)
    this.enter(weight)
    const before = this.squares(gap)
    let after = before
    let report: Tensor | undefined
    if (tolerance !== undefined) {
      const residual = device.tidy(() => device.triangularProduct(gap(), factor, { transposed: true }))
      report = device.conjugateGradients(weight, residual, { mask, factor }, { tolerance, iterations })
      residual.dispose()
      after = this.squares(gap)
    }
    this.leave(weight)
    return this.read([whole, before, after], report)
  }

  private async read(squares: readonly Tensor[], report: Tensor | undefined): Promise<Fit> {
    const sum = async (tensor: Tensor) =>
      (await this.device.readFloat32(tensor)).reduce((total, square) => total + square, 0)
    const told = report ? this.device.read(report) : Promise.resolve([])
    const [[whole = 0, first = 0, last = 0], [taken = 0]] = await Promise.all([
      Promise.all(squares.map(sum)),
      told,
    ])
    const share = (error: number) => (whole > 0 ? error / whole : 0)
    return { before: share(first), after: share(last), iterations: taken }
  }

  /** The sums of the squares in each column of what `make` makes, float32 [columns]. */
  private squares(make: () => Tensor): Tensor {
    const { device } = this
    return device.tidy(() => {
      const x = make()
      const sums = device.zeros('float32', [x.width])
      device.accumulateSquares(sums, x, 1)
      return sums
    })
  }
}
