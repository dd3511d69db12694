#include "frame/peer.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace margay::bench {
namespace {

[[noreturn]] void Die(const std::string& sentence) {
  std::fprintf(stderr, "%s\n", sentence.c_str());
  std::exit(1);
}

template <typename Function>
Function Symbol(void* library, const char* name) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) Die(std::string("the peer's library lacks ") + name);
  return reinterpret_cast<Function>(symbol);
}

}  // namespace

Peer::Peer(const std::string& library, const std::string& model, int threads) : library_(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (library_ == nullptr) Die(std::string("the peer's library cannot be loaded: ") + dlerror());
  name_ = Symbol<const char* (*)()>(library_, "margay_peer_name")();
  close_ = Symbol<void (*)(void*)>(library_, "margay_peer_close");
  decode_ = Symbol<bool (*)(void*, int)>(library_, "margay_peer_decode");
  prefill_ = Symbol<bool (*)(void*, int)>(library_, "margay_peer_prefill");
  engine_ = Symbol<void* (*)(const char*, int)>(library_, "margay_peer_open")(model.c_str(), threads);
  if (engine_ == nullptr) Die(name_ + " cannot open " + model);
}

// The library stays loaded: its threads and atexit handlers may outlive the engine.
Peer::~Peer() { close_(engine_); }

Rival Peer::Decode(int context) const {
  return {name_, [this, context](int64_t) {
            if (!decode_(engine_, context)) Die(name_ + " failed to decode");
          }};
}

Rival Peer::Prefill(int tokens) const {
  return {name_, [this, tokens](int64_t) {
            if (!prefill_(engine_, tokens)) Die(name_ + " failed to prefill");
          }};
}

}  // namespace margay::bench
