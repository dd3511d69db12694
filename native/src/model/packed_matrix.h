// Matrices in the layouts of kernels/linear/panel_layout.h.
#pragma once

#include "kernels/linear/linear.h"
#include "model/model_tensors.h"
#include "weights/checkpoint.h"
#include "weights/packed_weights.h"

namespace margay {

struct PackedMatrix {
  WeightFormat format = WeightFormat::kBf16;
  int out = 0;
  int in = 0;
  size_t weight = 0;  // offsets into the packed weights
  size_t scales = 0;
  size_t bias = 0;
  bool has_bias = false;

  bool has_scales() const { return format == WeightFormat::kFp8 || format == WeightFormat::kInt8; }
  int panels() const { return (out + kPanel - 1) / kPanel; }
};

// A linear of the checkpoint in its own precision: bf16, fp32, or fp8 with its scales.
PackedMatrix PackLinear(const Checkpoint& checkpoint, const LinearTensors& from, PackPlan* plan);

// The same in int8, symmetric with one scale per output: the largest weight becomes 127.
PackedMatrix PackInt8(const Checkpoint& checkpoint, const LinearTensors& from, PackPlan* plan);

// Rows [first, first + rows) of kv_b. Transposed, the rows are inputs. fp8 becomes bf16, as absorption needs.
PackedMatrix PackRows(const Checkpoint& checkpoint, const LinearTensors& from, int first, int rows, bool transposed,
                      PackPlan* plan);

// Floats, multiplied by `factor`.
size_t PackVector(const Checkpoint& checkpoint, const Tensor& tensor, float factor, PackPlan* plan);

// Rows as they are, [rows, columns] of bf16 or floats.
size_t PackTable(const Checkpoint& checkpoint, const Tensor& tensor, PackPlan* plan);

}  // namespace margay
