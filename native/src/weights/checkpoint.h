// A checkpoint folder in the published format: safetensors, in shards named by model.safetensors.index.json or alone.
//
// Opening reads headers only and proves that every tensor lies within its file, so later reads fail on nothing but the
// disk. Files stay open: a checkpoint replaced by renaming keeps the bytes that were opened.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/status.h"
#include "core/thread_pool.h"

namespace margay {

enum class DType : uint8_t { kF32, kBf16, kFp8, kOther };

struct Tensor {
  std::string name;
  DType dtype = DType::kOther;
  std::string dtype_name;  // as written in the file
  std::vector<int64_t> shape;
  size_t file = 0;
  uint64_t offset = 0;  // within the file
  uint64_t bytes = 0;
};

inline constexpr int kFp8Block = 128;  // side of the blocks of weight_scale_inv

class Checkpoint {
 public:
  static Result<Checkpoint> Open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }
  const Tensor* Find(std::string_view name) const;
  const std::string& config() const { return config_; }                        // text of config.json
  const std::string& generation_config() const { return generation_config_; }  // or empty

  Status Read(const Tensor& tensor, uint64_t first_byte, void* out, size_t bytes) const;

  // Rows [row, row + rows) of a matrix (or of a vector, as one row) as floats [rows][columns]. `scales` belongs to an
  // fp8 tensor. A value that is not finite is an error that names the tensor.
  Status ReadRows(const Tensor& tensor, const Tensor* scales, int64_t row, int64_t rows, float* out) const;

  // SHA-256 over config.json and, by name, every tensor's name, dtype, shape and SHA-256 of its bytes.
  Result<std::string> Hash(ThreadPool* pool) const;

  // Names this state of the files (paths, sizes, times, inodes) without reading them.
  Result<std::string> Identity() const;

 private:
  Status OpenFile(const std::string& name, size_t* index);
  Status AddHeader(size_t file, const std::map<std::string, std::string, std::less<>>* placed);

  std::string folder_;
  std::string config_;
  std::string generation_config_;
  std::vector<File> files_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace margay
