#include "addon/bridge.h"

#include <utility>
#include <variant>

#include "addon/messages.h"

namespace margay {

Napi::Error ToError(Napi::Env env, const Status& status) {
  Napi::Error error = Napi::Error::New(env, status.message());
  error.Value().Set("code", Napi::String::New(env, CodeName(status.code())));
  return error;
}

Bridge::Bridge(Napi::Env env, Napi::Object listener, Wrap wrap)
    : wrap_(std::move(wrap)), listener_(Napi::Persistent(listener)), opening_(Napi::Promise::Deferred::New(env)) {}

Napi::Value Bridge::Open(Napi::Env env, EngineOptions options, Napi::Object listener, Wrap wrap) {
  std::shared_ptr<Bridge> bridge(new Bridge(env, listener, std::move(wrap)));
  const Napi::Value promise = bridge->opening_->Promise();
  auto* held = new std::shared_ptr<Bridge>(bridge);  // until the bell is finalized
  bridge->bell_ = Bell::New(env, "margay-engine", 0, 1, bridge.get(), [held](Napi::Env, void*, Bridge* raw) {
    raw->TearDown();
    delete held;
  });
  bridge->worker_ = std::thread([raw = bridge.get(), options = std::move(options)] {
    Result<std::unique_ptr<Engine>> opened = Engine::Open(options, [raw] { raw->Ring(); });
    raw->load_status_ = opened.status();
    if (opened.ok()) raw->engine_ = std::move(*opened);
    raw->worked_.store(true, std::memory_order_release);
    raw->Ring();
  });
  return promise;
}

void Bridge::OnRing(Napi::Env env, Napi::Function, Bridge* bridge, void*) {
  if (env == nullptr) return;
  if (bridge->worked_.load(std::memory_order_acquire)) {
    if (bridge->state_ == State::kOpening) return bridge->FinishOpening(env);
    if (bridge->state_ == State::kClosing) return bridge->FinishClosing(env);
  }
  bridge->Deliver(env);
}

void Bridge::FinishOpening(Napi::Env env) {
  worker_.join();
  worked_ = false;
  if (!load_status_.ok()) {
    state_ = State::kClosed;
    opening_->Reject(ToError(env, load_status_).Value());
    bell_.Release();
    return;
  }
  state_ = State::kOpen;
  opening_->Resolve(wrap_(env, shared_from_this()));
}

Napi::Value Bridge::Await(Napi::Env env, CallId call) {
  return calls_.emplace(call, Napi::Promise::Deferred::New(env)).first->second.Promise();
}

void Bridge::FinishCall(Napi::Env env, CallId call, const Status& status) {
  const auto found = calls_.find(call);
  if (found == calls_.end()) return;
  const Napi::Promise::Deferred deferred = found->second;
  calls_.erase(found);
  if (status.ok()) {
    deferred.Resolve(env.Undefined());
  } else {
    deferred.Reject(ToError(env, status).Value());
  }
}

Napi::Value Bridge::Close(Napi::Env env) {
  if (!closing_promise_.IsEmpty()) return closing_promise_.Value();
  closing_.emplace(env);
  closing_promise_ = Napi::Reference<Napi::Promise>::New(closing_->Promise(), 1);
  if (state_ == State::kOpen) {
    StartClosing();
  } else {
    closing_->Resolve(env.Undefined());
  }
  return closing_promise_.Value();
}

void Bridge::Abandon() {
  if (state_ == State::kOpen) StartClosing();
}

void Bridge::StartClosing() {
  state_ = State::kClosing;
  engine_->Stop();
  worker_ = std::thread([this] {
    engine_->Close();
    worked_.store(true, std::memory_order_release);
    Ring();
  });
}

void Bridge::FinishClosing(Napi::Env env) {
  worker_.join();
  worked_ = false;
  state_ = State::kClosed;
  listener_.Reset();
  while (!calls_.empty()) FinishCall(env, calls_.begin()->first, Status(Code::kClosed, "the engine is closed"));
  if (closing_.has_value()) closing_->Resolve(env.Undefined());
  bell_.Release();
}

void Bridge::TearDown() {
  if (worker_.joinable()) worker_.join();
  if (engine_ != nullptr && state_ != State::kClosed) engine_->Close();
  state_ = State::kClosed;
  listener_.Reset();
  closing_promise_.Reset();
}

void Bridge::Deliver(Napi::Env env) {
  if (state_ != State::kOpen) return;
  const std::vector<EngineMessage> messages = engine_->TakeMessages();
  const auto tell = [&](const char* name, Napi::Value argument) {
    const Napi::Object listener = listener_.Value();
    const Napi::Value method = listener.Get(name);
    if (method.IsFunction()) method.As<Napi::Function>().Call(listener, {argument});
    // A listener that throws is an uncaught exception, and what follows is still delivered.
    if (env.IsExceptionPending()) napi_fatal_exception(env, env.GetAndClearPendingException().Value());
  };
  for (size_t i = 0; i < messages.size() && state_ == State::kOpen;) {
    const Napi::HandleScope scope(env);
    if (const auto* report = std::get_if<StepReport>(&messages[i])) {
      tell("onStep", ToObject(env, *report));
      ++i;
    } else if (const auto* fatal = std::get_if<FatalReport>(&messages[i])) {
      tell("onFatal", Napi::String::New(env, fatal->message));
      ++i;
    } else if (const auto* ended = std::get_if<CallEnded>(&messages[i])) {
      FinishCall(env, ended->call, ended->status);
      ++i;
    } else {
      Napi::Array events = Napi::Array::New(env);
      for (uint32_t count = 0; i < messages.size() && IsEvent(messages[i]); ++i, ++count) {
        events.Set(count, EventToObject(env, messages[i]));
      }
      tell("onEvents", events);
    }
  }
}

}  // namespace margay
