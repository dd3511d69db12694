// A small strict JSON reader (RFC 8259) for config.json and safetensors headers: no comments, no trailing commas, no
// duplicate keys, valid UTF-8 escapes, at most 64 levels
// and four million values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/status.h"

namespace margay {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  bool integral = false;  // written without fraction or exponent, and within int64
  int64_t integer = 0;    // when integral
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  bool is(Kind k) const { return kind == k; }
  // Null when this is no object or has no such member.
  const Json* Find(std::string_view key) const;
};

// Errors say what is wrong at which byte.
Result<Json> ParseJson(std::string_view text);

}  // namespace margay
