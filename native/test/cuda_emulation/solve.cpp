// native/cuda/solve.cu for the emulation.
#include "cuda/solve.cu"
