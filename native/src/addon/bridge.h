// Between an engine's threads and JavaScript's: one thread-safe function carries everything.
//
//   opening -> open -> closing -> closed        (opening may fail: closed)
//
// Owns the engine, the loading and the closing thread, the listener and the promises of open and close.
// A1 all methods run on the JavaScript thread; engine threads only ring (`Ring`)
// A2 loading and closing run on a thread of their own, never on JavaScript's and never on libuv's pool
// A3 the event loop is kept alive from opening to closed, no longer
// A4 when the environment goes away first, the engine is closed before its memory goes
#pragma once

#include <napi.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "engine/engine.h"

namespace margay {

class Bridge : public std::enable_shared_from_this<Bridge> {
 public:
  // Makes the JavaScript object of an engine that has opened.
  using Wrap = std::function<Napi::Value(Napi::Env, std::shared_ptr<Bridge>)>;

  // Begins to load; the promise gets what `wrap` makes, or a rejection with `code`.
  static Napi::Value Open(Napi::Env env, EngineOptions options, Napi::Object listener, Wrap wrap);

  Engine& engine() { return *engine_; }
  // A promise of the end of a call that the engine has taken.
  Napi::Value Await(Napi::Env env, CallId call);
  // A promise; the same one when called again.
  Napi::Value Close(Napi::Env env);
  // The JavaScript object is gone: nobody will call Close.
  void Abandon();

 private:
  enum class State { kOpening, kOpen, kClosing, kClosed };
  static void OnRing(Napi::Env env, Napi::Function, Bridge* bridge, void*);
  using Bell = Napi::TypedThreadSafeFunction<Bridge, void, OnRing>;

  Bridge(Napi::Env env, Napi::Object listener, Wrap wrap);
  void Ring() { bell_.NonBlockingCall(); }
  void StartClosing();
  void FinishOpening(Napi::Env env);
  void FinishClosing(Napi::Env env);
  void Deliver(Napi::Env env);
  void FinishCall(Napi::Env env, CallId call, const Status& status);
  void TearDown();

  State state_ = State::kOpening;
  Bell bell_;
  Wrap wrap_;
  Napi::ObjectReference listener_;
  std::optional<Napi::Promise::Deferred> opening_;
  std::optional<Napi::Promise::Deferred> closing_;
  Napi::Reference<Napi::Promise> closing_promise_;
  std::map<CallId, Napi::Promise::Deferred> calls_;  // not yet ended

  std::thread worker_;               // loads, later closes
  std::atomic<bool> worked_{false};  // the worker has nothing left to do but to end
  Status load_status_;
  std::unique_ptr<Engine> engine_;  // set by the loading thread before `worked_`
};

// An Error that carries the status' code.
Napi::Error ToError(Napi::Env env, const Status& status);

}  // namespace margay
