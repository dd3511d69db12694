// Matrix products in plain fp32: the specification that every fast kernel is compared with. The result of one row is
// independent of the other rows, of the number of threads and of how a prompt is cut into steps.
#pragma once

#include "core/thread_pool.h"

namespace margay::reference {

// y[row, o] = bias[o] + sum over k of x[row, k] * w[k, o], in the order of k.
struct LinearParams {
  const float* x;     // [rows] at distance x_stride
  int x_stride;
  int rows;
  const float* w;     // [in, out]
  const float* bias;  // [out] or null
  int in;
  int out;
  float* y;           // [rows] at distance y_stride
  int y_stride;
};
void Linear(const LinearParams& params, ThreadPool* pool);

}  // namespace margay::reference
