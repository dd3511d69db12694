// Errors as values. Nothing in native/src throws; the addon turns a Status into a JavaScript error.
#pragma once

#include <optional>
#include <string>
#include <utility>

namespace margay {

// Same names as NativeErrorCode in native/binding/native.ts.
enum class Code {
  kOk,
  kStaleHandle,
  kNoSlot,
  kNoBlocks,
  kTooLong,
  kBadState,
  kBadArgument,
  kQueueFull,
  kCheckpoint,
  kIo,
  kClosed,
  kGroupLost,
};

const char* CodeName(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  static Status Ok() { return {}; }
  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A value or the reason there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                 // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {}         // NOLINT: implicit on purpose
  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() { return *value_; }
  const T& value() const { return *value_; }
  T* operator->() { return &*value_; }
  T& operator*() { return *value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace margay
