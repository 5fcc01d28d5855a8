#include "cpu/scratch_model.h"

#include "core/thread_pool.h"
#include "cpu/dispatch.h"

namespace sparsegpt::cpu {

const ScratchModel& scratch_model() {
  static const CpuScratch model(thread_count(0), selected_level());
  return model;
}

}  // namespace sparsegpt::cpu
