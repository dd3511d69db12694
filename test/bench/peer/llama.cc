// llama.cpp behind the interface of native/bench/frame/peer.h. Compiled by the benchmark against the headers and the
// libraries that the package node-llama-cpp brings.
#include <dlfcn.h>
#include <ggml-backend.h>
#include <llama.h>

#include <cstdint>
#include <string>

namespace {

constexpr int kContext = 1024;

struct Engine {
  llama_model* model = nullptr;
  llama_context* context = nullptr;
  llama_batch batch = {};
  int filled = 0;  // tokens in the cache
  uint32_t random = 1;
};

void Quiet(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

// Runs `count` fresh tokens from position `first` on, with the logits of all.
bool Run(Engine* engine, int first, int count) {
  engine->batch.n_tokens = count;
  for (int i = 0; i < count; ++i) {
    engine->random = engine->random * 1664525 + 1013904223;
    engine->batch.token[i] = static_cast<llama_token>((engine->random >> 8) % 256 + 3);
    engine->batch.pos[i] = first + i;
    engine->batch.n_seq_id[i] = 1;
    engine->batch.seq_id[i][0] = 0;
    engine->batch.logits[i] = 1;
  }
  if (llama_decode(engine->context, engine->batch) != 0) return false;
  engine->filled = first + count;
  return llama_get_logits_ith(engine->context, count - 1) != nullptr;
}

// Forgets all that stands at position `count` and after it.
void Cut(Engine* engine, int count) {
  llama_memory_seq_rm(llama_get_memory(engine->context), 0, count, -1);
  engine->filled = count;
}

}  // namespace

extern "C" {

const char* margay_peer_name() { return "llama.cpp"; }

void* margay_peer_open(const char* path, int threads) {
  llama_log_set(Quiet, nullptr);
  Dl_info library;
  if (dladdr(reinterpret_cast<void*>(llama_backend_init), &library) == 0) return nullptr;
  const std::string file = library.dli_fname;
  ggml_backend_load_all_from_path(file.substr(0, file.rfind('/')).c_str());
  llama_backend_init();
  auto* engine = new Engine;
  llama_model_params model = llama_model_default_params();
  model.n_gpu_layers = 0;
  engine->model = llama_model_load_from_file(path, model);
  if (engine->model == nullptr) return nullptr;
  llama_context_params context = llama_context_default_params();
  context.n_ctx = kContext;
  context.n_batch = 512;
  context.n_ubatch = 512;
  context.n_threads = threads;
  context.n_threads_batch = threads;
  engine->context = llama_init_from_model(engine->model, context);
  if (engine->context == nullptr) return nullptr;
  engine->batch = llama_batch_init(512, 0, 1);
  return engine;
}

void margay_peer_close(void* opened) {
  auto* engine = static_cast<Engine*>(opened);
  llama_batch_free(engine->batch);
  llama_free(engine->context);
  llama_model_free(engine->model);
  delete engine;
}

bool margay_peer_decode(void* opened, int context) {
  auto* engine = static_cast<Engine*>(opened);
  if (engine->filled < context) {
    Cut(engine, 0);
    if (!Run(engine, 0, context)) return false;
  }
  Cut(engine, context);
  return Run(engine, context, 1);
}

bool margay_peer_prefill(void* opened, int tokens) {
  auto* engine = static_cast<Engine*>(opened);
  Cut(engine, 0);
  return Run(engine, 0, tokens);
}

}  // extern "C"
