// native/cuda/attention.cu for the emulation.
#include "cuda/attention.cu"
