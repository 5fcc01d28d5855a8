// The table of this level's kernels; dispatch.cpp lists the tables.
#include "cpu/kernels/level.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

#define SPARSEGPT_STRING(x) #x
#define SPARSEGPT_NAME(x) SPARSEGPT_STRING(x)

extern const Kernels kernels;
const Kernels kernels = {
    SPARSEGPT_NAME(SPARSEGPT_ISA),
    mr,
    nr,
    pack,
    micro,
#if defined(__AVX512BF16__)
    pack_pairs,
    micro_pairs,
#else
    nullptr,
    nullptr,
#endif
    sparse_rows,
    compress,
    multiply_sparse,
#if defined(__AVX512BF16__)
    compress_pairs,
    multiply_sparse_pairs,
    form_pairs,
#else
    nullptr,
    nullptr,
    nullptr,
#endif
    store_sums,
    to_float,
    from_float,
    activation,
    gate,
    add,
    scale,
    softcap,
    add_squares,
    all_finite,
    layer_norm,
    rms_norm,
    rotary,
    log_sum_exp,
    attention_scratch,
    attention,
    transpose,
    factor_block,
    solve_panel,
    score,
    sweep,
    collect,
};

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
