// Reads recorded results: a safetensors file of F32 and I32 tensors.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace margay::tests {

template <typename T>
T OrDie(Result<T> result) {
  if (result.ok()) return std::move(result.value());
  std::fprintf(stderr, "%s\n", result.status().message().c_str());
  std::exit(1);
}

inline void OrDie(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path) : file_(OrDie(File::Open(path))) {
    uint64_t bytes = 0;
    OrDie(file_.ReadAt(0, &bytes, 8));
    std::string text(bytes, '\0');
    OrDie(file_.ReadAt(8, text.data(), bytes));
    header_ = OrDie(ParseJson(text));
    data_ = 8 + bytes;
  }

  bool Has(const std::string& name) const { return header_.Find(name) != nullptr; }

  template <typename T>
  std::vector<T> Read(const std::string& name, std::vector<int64_t>* shape) const {
    const Json* entry = header_.Find(name);
    if (entry == nullptr) OrDie(Status(Code::kIo, "no " + name + " in " + file_.path()));
    shape->clear();
    for (const Json& side : entry->Find("shape")->items) shape->push_back(side.integer);
    const auto& offsets = entry->Find("data_offsets")->items;
    std::vector<T> values(static_cast<size_t>(offsets[1].integer - offsets[0].integer) / sizeof(T));
    OrDie(file_.ReadAt(data_ + static_cast<uint64_t>(offsets[0].integer), values.data(), values.size() * sizeof(T)));
    return values;
  }

 private:
  File file_;
  Json header_;
  uint64_t data_ = 0;
};

}  // namespace margay::tests
