// Prints one line per claim, "ok: <claim>" or "FAILED: <claim>: <why>", for test/native to read.
#pragma once

#include <cstdio>
#include <string>
#include <utility>

namespace margay {

class Claims {
 public:
  // `broken`: empty, or what was seen instead.
  void Check(const std::string& claim, const std::string& broken) {
    std::printf("%s: %s%s%s\n", broken.empty() ? "ok" : "FAILED", claim.c_str(), broken.empty() ? "" : ": ",
                broken.c_str());
    std::fflush(stdout);
    failed_ = failed_ || !broken.empty();
  }
  int ExitCode() const { return failed_ ? 1 : 0; }

 private:
  bool failed_ = false;
};

// The first thing that was not as it should be.
class Finding {
 public:
  void Expect(bool holds, const std::string& else_what) {
    if (!holds && what_.empty()) what_ = else_what;
  }
  template <typename A, typename B>
  void Same(const std::string& name, const A& seen, const B& wanted) {
    if (!(seen == wanted)) Expect(false, name + " is " + Text(seen) + ", not " + Text(wanted));
  }
  bool any() const { return !what_.empty(); }
  const std::string& what() const { return what_; }

 private:
  static std::string Text(const std::string& value) { return value; }
  static std::string Text(const char* value) { return value; }
  template <typename T>
  static std::string Text(const T& value) {
    return std::to_string(value);
  }
  std::string what_;
};

}  // namespace margay
