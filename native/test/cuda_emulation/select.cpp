// native/cuda/select.cu for the emulation.
#include "cuda/select.cu"
