// Another engine, loaded as a library at run time so that it can take turns with ours in one process. test/bench/peer
// has such a library for llama.cpp and makes a model of the same shape for it.
#pragma once

#include <string>

#include "frame/bench.h"

namespace margay::bench {

class Peer {
 public:
  // Ends the program when the library or the model cannot be loaded.
  Peer(const std::string& library, const std::string& model, int threads);
  ~Peer();
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  // One token after `context` others; a prompt with the logits of all its tokens.
  Rival Decode(int context) const;
  Rival Prefill(int tokens) const;

 private:
  std::string name_;
  void* library_ = nullptr;
  void* engine_ = nullptr;
  void (*close_)(void* engine) = nullptr;
  bool (*decode_)(void* engine, int context) = nullptr;
  bool (*prefill_)(void* engine, int tokens) = nullptr;
};

}  // namespace margay::bench
