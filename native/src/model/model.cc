// Loading, and the order of a step: one place for all backends (spec, section 2.1).
#include "model/model.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <string>
#include <utility>

#include "core/file.h"
#include "core/sha256.h"
#include "core/trace.h"
#include "model/backend.h"
#include "model/layer_schedule.h"
#include "model/model_config.h"
#include "model/model_tensors.h"
#include "weights/checkpoint.h"
#include "weights/packed_weights.h"

namespace margay {
namespace {

constexpr int kMostRows = 1 << 16;

Status BadArgument(const std::string& sentence) { return Status(Code::kBadArgument, sentence); }

class LongcatModel final : public Model {
 public:
  LongcatModel(ModelConfig config, ModelFacts facts, PackedWeights weights, std::unique_ptr<ThreadPool> pool,
               std::unique_ptr<Backend> backend, int max_rows)
      : c_(std::move(config)),
        facts_(std::move(facts)),
        weights_(std::move(weights)),
        pool_(std::move(pool)),
        backend_(std::move(backend)),
        max_rows_(static_cast<size_t>(max_rows)),
        counts_(c_.experts, c_.topk) {
    step_.rows.reserve(max_rows_);
    step_.wanted.reserve(max_rows_);
    draft_rows_.reserve(max_rows_);
    narrow_.reserve(max_rows_);
    sources_.reserve(max_rows_);
  }

  const ModelFacts& facts() const override { return facts_; }
  ThreadPool* pool() override { return pool_.get(); }

  Status Forward(std::span<const SequenceRows> sequences, const KvMemory& kv, const AttentionDone& done,
                 float* logits) override {
    last_rows_ = 0;
    if (Status begun = Begin(sequences, kv); !begun.ok()) return begun;
    if (step_.rows.empty() && exchange_ == nullptr) return BadArgument("a step without rows");
    const ThreadPool::Awake awake(pool_.get());
    if (!step_.rows.empty()) Traced("embed", [&] { backend_->Embed(step_); });
    if (exchange_ != nullptr) {
      if (Status begun = exchange_->BeginStep(); !begun.ok()) return begun;
    }
    for (int layer = 0; layer < c_.layers; ++layer) {
      if (Status run = RunLayer(layer, done); !run.ok()) return run;
    }
    if (!step_.rows.empty()) Traced("logits", [&] { backend_->Logits(step_, FinalNorm::kTarget, logits); });
    last_rows_ = static_cast<int>(step_.rows.size());
    last_norm_ = FinalNorm::kTarget;
    return Status::Ok();
  }

  Status Draft(std::span<const DraftRows> sequences, const KvMemory& kv, const AttentionDone& done,
               float* logits) override {
    if (!facts_.drafts) return Model::Draft(sequences, kv, done, logits);
    draft_rows_.clear();
    sources_.clear();
    for (const DraftRows& sequence : sequences) {
      if (sequence.source < 0 || sequence.rows.count > last_rows_ - sequence.source) {
        return BadArgument("a draft from a row that the last pass did not have");
      }
      draft_rows_.push_back(sequence.rows);
      for (int i = 0; i < sequence.rows.count; ++i) sources_.push_back(sequence.source + i);
    }
    if (Status begun = Begin(draft_rows_, kv); !begun.ok()) return begun;
    if (step_.rows.empty()) return BadArgument("a draft without rows");
    const ThreadPool::Awake awake(pool_.get());
    Traced("embed", [&] { backend_->EmbedDraft(step_, sources_, last_norm_); });
    if (Status run = RunStage(Stage::kProject0, c_.layers, done); !run.ok()) return run;
    Narrow();
    if (!step_.rows.empty()) {
      for (const Stage stage : {Stage::kAttend0, Stage::kMlp0}) {
        if (Status run = RunStage(stage, c_.layers, done); !run.ok()) return run;
      }
      Traced("logits", [&] { backend_->Logits(step_, FinalNorm::kDraft, logits); });
    }
    last_rows_ = static_cast<int>(step_.rows.size());
    last_norm_ = FinalNorm::kDraft;
    return Status::Ok();
  }

  Status SetExchange(ExpertExchange* exchange) override {
    const int ranks = exchange == nullptr ? 1 : exchange->members();
    if (ranks > room_) {
      backend_->MakeRoom(ranks);
      room_ = ranks;
    }
    exchange_ = exchange;
    return Status::Ok();
  }

  void TouchExperts(std::span<const int> experts) const override {
    for (int layer = 0; layer < c_.layers; ++layer) {
      for (const int expert : experts) TouchPages(backend_->ExpertWeights(layer, expert));
    }
  }

  RoutingCounters routing_counters() const override { return counts_.Read(); }

  void ForceRouting(const std::vector<int32_t>* forced, std::vector<int32_t>* recorded) override {
    routing_.Use(forced, recorded);
  }

  void ForceOrder(const std::vector<Stage>* order) override { order_ = order; }

 private:
  template <typename Body>
  static void Traced(const char* name, const Body& body) {
    const trace::Span span(name);
    body();
  }

  // The layer's stages, in the order of layer_schedule.h. Without rows of its own a rank of a group serves the others.
  Status RunLayer(int layer, const AttentionDone& done) {
    StageSet ended = exchange_ == nullptr ? kTrafficStages : 0;
    if (step_.rows.empty()) ended = kAllStages & ~(kTrafficStages | These(Stage::kExperts));
    size_t place = 0;
    while (ended != kAllStages) {
      const StageFacts& next = order_ == nullptr ? NextStage(kLayerSchedule, ended, [this](Stage stage) { return Arrived(stage); })
                                                 : kLayerSchedule[static_cast<size_t>((*order_)[place++])];
      if ((ended & These(next.stage)) != 0) continue;
      if (Status run = RunStage(next.stage, layer, done); !run.ok()) return run;
      ended |= These(next.stage);
    }
    return Status::Ok();
  }

  bool Arrived(Stage receive) const {
    return receive == Stage::kDispatchReceive ? exchange_->DispatchArrived() : exchange_->CombineArrived();
  }

  // The draft layer is the one after the last: its first half is all of it, and its attention follows those of the layers.
  Status RunStage(Stage stage, int layer, const AttentionDone& done) {
    const trace::Span span(kLayerSchedule[static_cast<size_t>(stage)].name);
    switch (stage) {
      case Stage::kProject0:
        WriteKv(layer, 0, done);
        break;
      case Stage::kProject1:
        WriteKv(layer, 1, done);
        break;
      case Stage::kAttend0:
        backend_->Attend(step_, layer, 0, layer < c_.layers ? exchange_ : nullptr);
        break;
      case Stage::kAttend1:
        backend_->Attend(step_, layer, 1, nullptr);
        break;
      case Stage::kMlp0:
        backend_->DenseMlp(step_, layer, 0);
        break;
      case Stage::kMlp1:
        backend_->DenseMlp(step_, layer, 1);
        break;
      case Stage::kRoute:
        backend_->Route(step_, layer, &routing_);
        counts_.Count(backend_->Routed(step_));
        break;
      case Stage::kDispatchSend:
        return exchange_->DispatchSend(layer, backend_->Routed(step_));
      case Stage::kDispatchReceive:
        return exchange_->DispatchReceive(layer, &received_);
      case Stage::kExperts:
        if (exchange_ == nullptr) {
          backend_->Experts(step_, layer);
        } else {
          backend_->ServeExperts(received_, layer, exchange_);
        }
        break;
      case Stage::kCombineSend:
        return exchange_->CombineSend(layer);
      case Stage::kCombineReceive:
        return exchange_->CombineReceive(layer);
      case Stage::kJoin:
        backend_->JoinShortcut(step_, exchange_);
        break;
    }
    return Status::Ok();
  }

  void WriteKv(int layer, int half, const AttentionDone& done) {
    backend_->WriteKv(step_, layer, half);
    if (done) done(2 * layer + half);
  }

  // Goes on with the rows whose logits are wanted: nothing looks back at the other rows' hidden states.
  void Narrow() {
    if (step_.wanted.size() == step_.rows.size()) return;
    narrow_.clear();
    for (size_t i = 0; i < step_.wanted.size(); ++i) {
      const StepRow& row = step_.rows[static_cast<size_t>(step_.wanted[i])];
      narrow_.push_back({nullptr, 1, row.position, row.block_table, 1});
      step_.rows[i] = row;
    }
    step_.rows.resize(step_.wanted.size());
    step_.sequences = narrow_;
    if (!step_.rows.empty()) backend_->Narrow(step_, step_.wanted);
    for (size_t i = 0; i < step_.wanted.size(); ++i) step_.wanted[i] = static_cast<int>(i);
  }

  Status Begin(std::span<const SequenceRows> sequences, const KvMemory& kv) {
    if (kv.layout != facts_.kv) {
      return BadArgument("the KV pool is laid out as " + kv.layout.Spell() + ", the model needs " + facts_.kv.Spell());
    }
    step_.sequences = sequences;
    step_.kv = kv;
    step_.rows.clear();
    step_.wanted.clear();
    for (const SequenceRows& sequence : sequences) {
      if (sequence.count < 1 || static_cast<size_t>(sequence.count) > max_rows_ - step_.rows.size()) {
        return BadArgument("a step has at least one row per sequence and at most " + std::to_string(max_rows_) + " in all");
      }
      if (sequence.position < 0 || sequence.position > c_.context_length - sequence.count) {
        return BadArgument("a row lies outside the context of " + std::to_string(c_.context_length) + " tokens");
      }
      if (sequence.logits_rows < 0 || sequence.logits_rows > sequence.count) return BadArgument("logits of rows that are not in the step");
      for (int i = 0; i < sequence.count; ++i) {
        const int32_t token = sequence.tokens[i];
        if (token < 0 || token >= c_.vocab_size) return BadArgument("a token outside the vocabulary");
        if (i >= sequence.count - sequence.logits_rows) step_.wanted.push_back(static_cast<int>(step_.rows.size()));
        step_.rows.push_back({token, sequence.position + i, sequence.block_table});
      }
    }
    return Status::Ok();
  }

  const ModelConfig c_;
  const ModelFacts facts_;
  const PackedWeights weights_;
  const std::unique_ptr<ThreadPool> pool_;
  const std::unique_ptr<Backend> backend_;
  const size_t max_rows_;
  Step step_;
  std::vector<SequenceRows> draft_rows_, narrow_;
  std::vector<int> sources_;
  int last_rows_ = 0;  // whose hidden states the backend holds
  FinalNorm last_norm_ = FinalNorm::kTarget;
  Routing routing_;
  RoutingCounts counts_;
  ExpertExchange* exchange_ = nullptr;
  int room_ = 1;  // ranks whose rows the backend has room for
  std::span<const ReceivedRow> received_;
  const std::vector<Stage>* order_ = nullptr;
};

// The content hash of a checkpoint is remembered beside the packed files under the identity of its files, so that it
// is read whole only once.
Result<std::string> ModelHash(const Checkpoint& checkpoint, const std::string& packed_folder, ThreadPool* pool) {
  if (packed_folder.empty()) return checkpoint.Hash(pool);
  const Result<std::string> identity = checkpoint.Identity();
  if (!identity.ok()) return identity.status();
  const std::string path = packed_folder + "/" + identity.value() + ".model-hash";
  if (FileExists(path)) {
    const Result<std::string> known = ReadText(path, 256);
    if (known.ok() && known.value().size() == 65 && known.value().back() == '\n') return known.value().substr(0, 64);
  }
  Result<std::string> hash = checkpoint.Hash(pool);
  if (!hash.ok()) return hash;
  const Result<std::string> afterwards = checkpoint.Identity();
  if (!afterwards.ok()) return afterwards.status();
  if (afterwards.value() != identity.value()) {
    return Status(Code::kCheckpoint, checkpoint.folder() + " was written to while it was read");
  }
  if (Status made = MakeFolder(packed_folder); !made.ok()) return made;
  if (Status kept = WriteTextAtomically(path, hash.value() + "\n"); !kept.ok()) return kept;
  return hash;
}

// KV rows depend on the eps of the latent norm and the weights made at load too, and rows that are promised to be equal to the bit on the arithmetic:
// engines that differ in them must not exchange pages. numerics: of a deterministic engine, else empty.
std::string KvHash(const std::string& checkpoint_hash, float default_eps, float latent_eps, WeightChoice weights,
                   const std::string& numerics) {
  std::string differs;
  if (latent_eps != default_eps) differs += " latent-norm-eps " + std::to_string(std::bit_cast<uint32_t>(latent_eps));
  if (weights == WeightChoice::kInt8) differs += " int8 weights";
  if (!numerics.empty()) differs += " deterministic " + numerics;
  if (differs.empty()) return checkpoint_hash;
  Sha256 sha;
  sha.Update(checkpoint_hash + differs);
  return Hex(sha.Finish());
}

}  // namespace

Result<std::unique_ptr<Model>> Model::Load(const ModelOptions& options) {
  if (options.max_rows < 1 || options.max_rows > kMostRows) {
    return BadArgument("the rows of a step must be from 1 to " + std::to_string(kMostRows));
  }
  Result<Checkpoint> checkpoint = Checkpoint::Open(options.folder);
  if (!checkpoint.ok()) return checkpoint.status();
  Result<ModelConfig> config = ParseModelConfig(checkpoint->config(), checkpoint->generation_config());
  if (!config.ok()) return config.status();
  Result<ModelTensors> tensors = FindModelTensors(*checkpoint, *config);
  if (!tensors.ok()) return tensors.status();
  if (!options.draft) tensors->draft.reset();
  const bool drafts = tensors->draft.has_value();

  const auto began = std::chrono::steady_clock::now();
  auto pool = std::make_unique<ThreadPool>(options.threads, options.pin_threads);
  const float latent_eps = options.latent_norm_eps < 0 ? config->rms_eps : options.latent_norm_eps;
  const BackendOptions wanted{latent_eps, options.max_rows, options.isa, options.weights, options.deterministic};
  std::unique_ptr<Backend> backend;
  if (options.backend == BackendKind::kRef) {
    if (options.weights != WeightChoice::kCheckpoint) return BadArgument("int8 weights need the cpu backend: ref computes in fp32");
    backend = MakeRefBackend(*config, wanted, pool.get());
  } else {
    Result<std::unique_ptr<Backend>> made = MakeCpuBackend(*config, wanted, pool.get());
    if (!made.ok()) return made.status();
    backend = std::move(*made);
  }

  const auto chosen = std::chrono::steady_clock::now();

  const Result<std::string> hash = ModelHash(*checkpoint, options.packed_folder, pool.get());
  if (!hash.ok()) return hash.status();
  PackPlan plan;
  backend->Plan(*checkpoint, *tensors, &plan);
  Sha256 key;
  key.Update(hash.value() + " " + backend->PackedLayout() + (drafts ? " draft" : ""));
  Result<PackedWeights> weights = PackedWeights::Materialise(plan, options.packed_folder, Hex(key.Finish()), pool.get());
  if (!weights.ok()) return weights.status();
  backend->Bind(weights->base());

  ModelFacts facts;
  facts.model_hash = KvHash(hash.value(), config->rms_eps, latent_eps, options.weights,
                            options.deterministic ? backend->Isa() + " " + backend->PackedLayout() : "");
  facts.vocab_size = config->vocab_size;
  facts.context_length = config->context_length;
  facts.attentions = config->attentions() + (drafts ? 1 : 0);
  facts.drafts = drafts;
  facts.kv = {facts.attentions, config->kv_row(), backend->kv_type()};
  facts.layers = config->layers;
  facts.hidden = config->hidden;
  facts.experts = config->experts;
  facts.topk = config->topk;
  facts.max_rows = options.max_rows;
  facts.payload = backend->payload();
  facts.combine = backend->combine();
  facts.eos_tokens = config->eos_tokens;
  facts.isa = backend->Isa();
  facts.threads = pool->threads();
  facts.weight_bytes = weights->bytes();
  facts.packed_hit = weights->hit();
  using Milliseconds = std::chrono::duration<double, std::milli>;
  facts.kernels_ms = Milliseconds(chosen - began).count();
  facts.weights_ms = Milliseconds(std::chrono::steady_clock::now() - chosen).count();
  facts.warnings = tensors->warnings;
  return std::unique_ptr<Model>(std::make_unique<LongcatModel>(std::move(*config), std::move(facts), std::move(*weights),
                                                               std::move(pool), std::move(backend), options.max_rows));
}

}  // namespace margay
