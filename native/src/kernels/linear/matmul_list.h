// Runs a list of matrix products on all threads. Activations are packed first, once for all products that share them;
// then every thread takes panels of weights and multiplies them with all strips of rows, so that a weight comes from
// memory once.
#pragma once

#include <cstddef>
#include <memory>
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

// y = x * w, or y = silu(x * w) * (x * up) when `up` is given: of the same shape as w.
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
  // Rows of one job whose activations lie packed together.
  struct Part {
    const MatmulJob* job;
    int first_row;
    int rows;
    int strips;       // of rows that differ by at most one
    size_t packed;    // offset of the first strip
    bool own;         // packed for this part; else shared with an earlier one
    int first_pack;   // item of work that packs its first strip
    int first_item;
    int panels;       // per item
    int bands;        // of strips, per range of panels
  };
  struct Strip {
    int first_row;
    int rows;
    std::byte* packed;
    std::byte* packed_up;  // another one where `up` is of a format that wants other activations
  };

  const LinearKernel& KernelOf(const MatmulWeights& w) const { return linear_->formats[static_cast<size_t>(w.format)]; }
  bool PacksTwice(const MatmulJob& job) const { return job.up != nullptr && KernelOf(*job.up).pack != KernelOf(job.w).pack; }
  bool SharesActivations(const Part& before, const Part& part) const;
  int StripRows(const MatmulJob& job) const;
  int StripsTogether(const MatmulJob& job) const;
  size_t PackedBytes(const MatmulWeights& w, int rows) const;
  size_t StripBytes(const MatmulJob& job) const;
  // Takes jobs from (*job, *row) on until the packed activations are full.
  void Gather(std::span<const MatmulJob> jobs, size_t* job, int* row);
  void Pack();
  void Cut();
  void Multiply();
  Strip StripOf(const Part& part, int index) const;
  void RunItem(const Part& part, int item, int thread);
  void RunFused(const Part& part, int first_strip, int strips, int panel, int panels, int thread);

  const LinearKernels* linear_;
  const PointwiseKernels* pointwise_;
  ThreadPool* pool_;
  std::vector<Part> parts_;
  int packs_ = 0;
  int items_ = 0;
  int64_t products_ = 0;                  // of parts_
  size_t packed_bytes_ = 0;               // in use
  std::unique_ptr<std::byte[]> memory_;   // not touched before it is used
  std::byte* packed_ = nullptr;           // aligned
  std::vector<float> scratch_;            // per thread: two blocks of fused gate and up
};

}  // namespace margay
