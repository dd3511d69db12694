// The `group` of an engine that is one of several ranks: the same names in the same order as
// native/binding/group-engine.ts.
#pragma once

#include <napi.h>

#include <memory>
#include <string>

#include "addon/bridge.h"

namespace margay {

GroupOptions ReadGroupOptions(const Napi::Value& value, std::string* error);

// What its functions need they hold: `bridge` stays as long as one of them does.
Napi::Value GroupObject(Napi::Env env, const std::shared_ptr<Bridge>& bridge);

}  // namespace margay
