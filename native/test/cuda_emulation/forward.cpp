// native/cuda/forward.cu for the emulation.
#include "cuda/forward.cu"
