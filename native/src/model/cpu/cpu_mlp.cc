// The dense MLP of the cpu backend.
#include "model/cpu/cpu_backend.h"

namespace margay {

void CpuBackend::DenseMlp(const Step& step, int layer, int half) {
  const CpuMlp& mlp = weights_.layer(layer).mlp[half];
  MatmulJob job = Job(mlp.gate, NormOf(half), step, wide_.data());
  job.up = &mlp.up;
  RunOne(job);
  RunOne(Job(mlp.down, wide_.data(), step, y_.data()));
  pending_ = Pending::kBranch;
}

}  // namespace margay
