// Reads the fields of a JavaScript object. The first thing that is not as native.ts declares it is remembered by name;
// from then on everything reads as zero, so that a function checks once, after it has read all.
#pragma once

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/status.h"

namespace margay {

class Fields {
 public:
  // `error` outlives this; empty: all well so far.
  Fields(Napi::Value value, const char* name, std::string* error) : error_(error) {
    if (value.IsObject()) {
      object_ = value.As<Napi::Object>();
    } else {
      Refuse(name, "an object");
    }
  }

  Napi::Value Get(const char* name) const {
    return error_->empty() ? object_.Get(name) : Napi::Value();
  }
  Fields Object(const char* name) const {
    if (!error_->empty()) return *this;
    return Fields(Get(name), name, error_);
  }

  double Number(const char* name) const {
    const Napi::Value value = Get(name);
    if (!Check(value, name, "a number", [](Napi::Value v) { return v.IsNumber(); })) return 0;
    const double number = value.As<Napi::Number>().DoubleValue();
    if (std::isnan(number)) Refuse(name, "a number");
    return std::isnan(number) ? 0 : number;
  }
  // Cut to the integers a double holds exactly.
  int64_t Integer(const char* name) const {
    constexpr double kMost = 9007199254740991.0;
    return static_cast<int64_t>(std::fmin(std::fmax(Number(name), -kMost), kMost));
  }
  int Int(const char* name) const {
    constexpr double kMost = std::numeric_limits<int>::max();
    return static_cast<int>(std::fmin(std::fmax(Number(name), -kMost), kMost));
  }
  std::string Text(const char* name) const {
    const Napi::Value value = Get(name);
    if (!Check(value, name, "a string", [](Napi::Value v) { return v.IsString(); })) return {};
    return value.As<Napi::String>().Utf8Value();
  }
  bool Flag(const char* name) const {
    const Napi::Value value = Get(name);
    if (!Check(value, name, "true or false", [](Napi::Value v) { return v.IsBoolean(); })) return false;
    return value.As<Napi::Boolean>().Value();
  }
  // False where it is left out.
  bool FlagIfGiven(const char* name) const { return error_->empty() && !Get(name).IsUndefined() && Flag(name); }
  bool IsNull(const char* name) const { return error_->empty() && Get(name).IsNull(); }

  std::vector<int32_t> Ints(const char* name) const {
    return Copy<Napi::Int32Array, int32_t>(name, "an Int32Array", napi_int32_array);
  }
  std::vector<float> Floats(const char* name) const {
    return Copy<Napi::Float32Array, float>(name, "a Float32Array", napi_float32_array);
  }

  void Refuse(const char* name, const char* wanted) const {
    if (error_->empty()) *error_ = std::string(name) + " must be " + wanted;
  }

 private:
  template <typename Test>
  bool Check(Napi::Value value, const char* name, const char* wanted, Test test) const {
    if (!error_->empty()) return false;
    if (!value.IsEmpty() && test(value)) return true;
    Refuse(name, wanted);
    return false;
  }

  template <typename Array, typename Item>
  std::vector<Item> Copy(const char* name, const char* wanted, napi_typedarray_type type) const {
    const Napi::Value value = Get(name);
    const auto fits = [&](Napi::Value v) {
      return v.IsTypedArray() && v.As<Napi::TypedArray>().TypedArrayType() == type;
    };
    if (!Check(value, name, wanted, fits)) return std::vector<Item>();
    const auto array = value.As<Array>();
    return std::vector<Item>(array.Data(), array.Data() + array.ElementLength());
  }

  Napi::Object object_;
  std::string* error_;
};

}  // namespace margay
