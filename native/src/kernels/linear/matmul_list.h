// Runs a list of matrix products on all threads: cut into tiles of panels and rows, each weight read once per band of rows.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/linear/linear.h"
#include "kernels/pointwise/pointwise.h"

namespace margay {

// A packed matrix in memory.
struct MatmulWeights {
  WeightFormat format = WeightFormat::kBf16;
  int out = 0;
  int in = 0;
  const std::byte* weight = nullptr;
  const float* scales = nullptr;
  const float* bias = nullptr;
};

// y = x * w, or y = silu(x * w) * (x * up) when `up` is given.
struct MatmulJob {
  MatmulWeights w;
  const MatmulWeights* up = nullptr;
  const float* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* x_rows = nullptr;  // which rows of x; null: in order
  int rows = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

class MatmulList {
 public:
  // most_jobs: of one Run.
  MatmulList(const LinearKernels* linear, const PointwiseKernels* pointwise, ThreadPool* pool, int most_jobs);
  void Run(std::span<const MatmulJob> jobs);

 private:
  struct Cut {
    int first_item;
    int panels;  // per tile
    int rows;
    int bands;   // tiles of rows
  };
  void RunTile(const MatmulJob& job, const Cut& cut, int tile, int thread);

  const LinearKernels* linear_;
  const PointwiseKernels* pointwise_;
  ThreadPool* pool_;
  std::vector<Cut> cuts_;
  std::vector<float> scratch_;  // per thread: two blocks of fused gate and up
};

}  // namespace margay
