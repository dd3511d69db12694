// What this machine can do at most, measured in the process that is judged by it.
//
// Stream: reading memory that no cache holds, four streams with prefetch per thread. Copy: memcpy of such memory.
// Arithmetic: register-only loops of one vector unit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "frame/memory.h"
#include "frame/register_loops.h"

namespace margay::bench {

// What an operation multiplies; kNone: it only moves bytes.
enum class Arithmetic { kNone, kFloat, kInt8 };

struct Unit {
  std::string name;  // "fp32 avx512"
  Arithmetic kind;
  RegisterLoop loop;
  double rate = 0;  // operations per second of one thread, roughly

  double SampleOperations() const;
};

class Limits {
 public:
  Limits();

  const std::vector<Unit>& units() const { return units_; }

  // The fastest unit that code of this path (kernels/code_path.h) may use for a product; null for kNone. AVX-512
  // paths take the dot products of the machine where they are faster.
  const Unit* BestFor(const std::string& path, Arithmetic kind) const;

  // Seconds of one sample, all threads of the pool at work.
  double StreamSeconds(ThreadPool* pool);
  double CopySeconds(ThreadPool* pool);
  double ArithmeticSeconds(const Unit& unit, ThreadPool* pool) const;
  // What one sample reads or copies.
  static double StreamBytes();
  static double CopyBytes();

 private:
  std::byte* NextPiece(size_t bytes);

  std::vector<Unit> units_;
  Buffer memory_;
  size_t at_ = 0;
};

}  // namespace margay::bench
