// What the engine tells, as the objects of native.ts: StepResult and EngineEvent.
#pragma once

#include <napi.h>

#include <cstring>
#include <variant>
#include <vector>

#include "engine/outbox.h"

namespace margay {

inline Napi::Object ToObject(Napi::Env env, SequenceRef ref) {
  Napi::Object handle = Napi::Object::New(env);
  handle.Set("slot", ref.slot);
  handle.Set("generation", ref.generation);
  return handle;
}

inline Napi::Object ToObject(Napi::Env env, const CacheCounters& from) {
  Napi::Object counters = Napi::Object::New(env);
  counters.Set("hitTokens", static_cast<double>(from.hit_tokens));
  counters.Set("missedTokens", static_cast<double>(from.missed_tokens));
  counters.Set("evictedBlocks", static_cast<double>(from.evicted_blocks));
  counters.Set("refusedBlocks", static_cast<double>(from.refused_blocks));
  counters.Set("bytes", static_cast<double>(from.bytes));
  return counters;
}

template <typename Array, typename Item>
Array ToArray(Napi::Env env, const std::vector<Item>& items) {
  Array array = Array::New(env, items.size());
  if (!items.empty()) std::memcpy(array.Data(), items.data(), items.size() * sizeof(Item));
  return array;
}

inline Napi::Object ToObject(Napi::Env env, const StepLogprobs& from) {
  Napi::Object to = Napi::Object::New(env);
  to.Set("slot", from.slot);
  to.Set("chosen", from.chosen);
  to.Set("ids", ToArray<Napi::Int32Array>(env, from.ids));
  to.Set("values", ToArray<Napi::Float32Array>(env, from.values));
  return to;
}

inline Napi::Object ToObject(Napi::Env env, const StepReport& report) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("step", static_cast<double>(report.step));
  result.Set("plan", static_cast<double>(report.plan));
  result.Set("entries", ToArray<Napi::Int32Array>(env, report.entries));
  result.Set("tokens", ToArray<Napi::Int32Array>(env, report.tokens));
  Napi::Array logprobs = Napi::Array::New(env, report.logprobs.size());
  for (uint32_t i = 0; i < report.logprobs.size(); ++i) logprobs.Set(i, ToObject(env, report.logprobs[i]));
  result.Set("logprobs", logprobs);
  result.Set("startMs", report.start_ms);
  result.Set("computeMs", report.compute_ms);
  return result;
}

inline bool IsEvent(const EngineMessage& message) {
  return !std::holds_alternative<StepReport>(message) && !std::holds_alternative<FatalReport>(message) &&
         !std::holds_alternative<CallEnded>(message);
}

inline Napi::Object EventToObject(Napi::Env env, const EngineMessage& message) {
  Napi::Object event = Napi::Object::New(env);
  if (const auto* transfer = std::get_if<TransferEvent>(&message)) {
    const TransferOutcome& outcome = transfer->outcome;
    event.Set("kind", std::string(transfer->sent ? (outcome.ok ? "sent" : "send-failed")
                                                 : (outcome.ok ? "received" : "receive-failed")));
    event.Set("handle", ToObject(env, outcome.sequence));
    if (outcome.ok) {
      event.Set("pages", static_cast<double>(outcome.pages));
      event.Set("bytes", static_cast<double>(outcome.bytes));
      event.Set("ms", outcome.ms);
    } else {
      event.Set("cause", outcome.cause);
    }
  } else if (const auto* first = std::get_if<FirstToken>(&message)) {
    event.Set("kind", "first-token");
    event.Set("handle", ToObject(env, first->sequence));
    event.Set("token", first->token);
    event.Set("finish", static_cast<int32_t>(first->finish));
    event.Set("computeMs", first->compute_ms);
    event.Set("logprobs", first->logprobs.has_value() ? ToObject(env, *first->logprobs) : env.Null());
  } else if (const auto* lapsed = std::get_if<LapsedEvent>(&message)) {
    event.Set("kind", "lapsed");
    event.Set("handle", ToObject(env, lapsed->sequence));
  } else if (const auto* lost = std::get_if<GroupLostEvent>(&message)) {
    event.Set("kind", "group-lost");
    event.Set("epoch", static_cast<double>(lost->epoch));
    event.Set("guilty", lost->guilty < 0 ? env.Null() : Napi::Number::New(env, lost->guilty));
    event.Set("cause", lost->cause);
  } else if (const auto* changes = std::get_if<KvChanges>(&message)) {
    event.Set("kind", "kv");
    event.Set("stored", ToArray<Napi::Uint8Array>(env, changes->stored));
    event.Set("removed", ToArray<Napi::Uint8Array>(env, changes->removed));
  }
  return event;
}

}  // namespace margay
