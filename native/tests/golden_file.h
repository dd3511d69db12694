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

// Recorded prompts with the logits of their last positions.
struct Prompt {
  std::vector<int32_t> tokens;
  std::vector<float> logits;  // of the last positions
  int recorded = 0;           // how many
};

inline std::vector<Prompt> ReadPrompts(const GoldenFile& golden) {
  std::vector<Prompt> prompts;
  std::vector<int64_t> shape;
  if (golden.Has("tokens")) {
    const auto tokens = golden.Read<int32_t>("tokens", &shape);
    const auto length = static_cast<size_t>(shape[1]);
    const auto logits = golden.Read<float>("logits", &shape);
    const size_t each = logits.size() / (tokens.size() / length);
    for (size_t i = 0; i < tokens.size() / length; ++i) {
      Prompt& prompt = prompts.emplace_back();
      prompt.tokens.assign(&tokens[i * length], &tokens[i * length] + length);
      prompt.logits.assign(&logits[i * each], &logits[i * each] + each);
      prompt.recorded = static_cast<int>(length);
    }
    return prompts;
  }
  for (int i = 0; golden.Has("case" + std::to_string(i) + ".tokens"); ++i) {
    const std::string stem = "case" + std::to_string(i);
    Prompt& prompt = prompts.emplace_back();
    prompt.tokens = golden.Read<int32_t>(stem + ".tokens", &shape);
    prompt.logits = golden.Read<float>(stem + ".logits", &shape);
    prompt.recorded = static_cast<int>(shape[0]);
  }
  return prompts;
}

}  // namespace margay::tests
