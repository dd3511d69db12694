// One JSON object on one line of stdout.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

namespace margay::bench {

class JsonLine {
 public:
  explicit JsonLine(const std::string& kind) { Text("kind", kind); }

  JsonLine& Text(const std::string& key, const std::string& value) { return Raw(key, Quote(value)); }
  JsonLine& Flag(const std::string& key, bool value) { return Raw(key, value ? "true" : "false"); }
  // null where it is no number.
  JsonLine& Number(const std::string& key, double value) { return Raw(key, Spell(value)); }
  // A value that is JSON already.
  JsonLine& Raw(const std::string& key, const std::string& json) {
    text_.append(text_.size() > 1 ? "," : "").append(Quote(key)).append(":").append(json);
    return *this;
  }
  void Print() const {
    std::printf("%s}\n", text_.c_str());
    std::fflush(stdout);
  }
  std::string Object() const { return text_ + "}"; }

  static std::string Quote(const std::string& value) {
    std::string quoted = "\"";
    for (const char c : value) {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return quoted + "\"";
  }
  static std::string Spell(double value) {
    if (!std::isfinite(value)) return "null";
    char digits[40];
    std::snprintf(digits, sizeof(digits), "%.6g", value);
    return digits;
  }

 private:
  std::string text_ = "{";
};

}  // namespace margay::bench
