// The native boundary: the same names in the same order as native/binding/native.ts (see native/README.md).
#include <napi.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "addon/bridge.h"
#include "addon/fields.h"
#include "addon/group_object.h"
#include "addon/messages.h"
#include "core/trace.h"
#include "engine/engine.h"

namespace margay {
namespace {

Napi::Value Throw(Napi::Env env, const Status& status) {
  ToError(env, status).ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Value ThrowBadArgument(Napi::Env env, const std::string& message) {
  return Throw(env, Status(Code::kBadArgument, message));
}

SequenceRef ReadHandle(const Napi::Value& value, std::string* error) {
  const Fields handle(value, "handle", error);
  return {handle.Int("slot"), handle.Int("generation")};
}

EngineOptions ReadEngineOptions(const Napi::Value& value, std::string* error) {
  const Fields fields(value, "options", error);
  EngineOptions options;
  options.model.folder = fields.Text("modelFolder");
  const std::string backend = fields.Text("backend");
  if (backend != "auto" && backend != "ref" && backend != "cpu") fields.Refuse("backend", "auto, ref or cpu");
  options.model.backend = backend == "ref" ? BackendKind::kRef : BackendKind::kCpu;
  options.model.threads = fields.Int("threads");
  options.model.pin_threads = fields.FlagIfGiven("pinThreads");
  if (!fields.IsNull("packedFolder")) options.model.packed_folder = fields.Text("packedFolder");
  if (!fields.IsNull("latentNormEps")) {
    options.model.latent_norm_eps = static_cast<float>(fields.Number("latentNormEps"));
  }
  const std::string weights = fields.Text("weightFormat");
  if (weights != "checkpoint" && weights != "int8") fields.Refuse("weightFormat", "checkpoint or int8");
  if (weights == "int8") options.model.weights = WeightChoice::kInt8;
  options.model.deterministic = fields.Flag("deterministic");
  options.slots = fields.Int("slots");
  options.kv_blocks = fields.Int("kvBlocks");
  options.kv_bytes = static_cast<uint64_t>(std::max<int64_t>(fields.Integer("kvBytes"), 0));
  options.kv_tier.bytes = static_cast<uint64_t>(std::max<int64_t>(fields.Integer("kvTierBytes"), 0));
  if (!fields.IsNull("kvTierFolder")) options.kv_tier.folder = fields.Text("kvTierFolder");
  options.model.max_rows = fields.Int("maxStepTokens");
  options.speculation = fields.Int("speculation");
  options.draft_always = fields.FlagIfGiven("draftAlways");
  const std::string role = fields.Text("role");
  if (role != "prefill" && role != "decode") fields.Refuse("role", "prefill or decode");
  options.decode = role == "decode";
  fields.Text("rankId");  // the rank's name is for its own logs
  options.kv_host = fields.Text("kvHost");
  options.kv_port = fields.Int("kvPort");
  const std::string transport = fields.Text("kvTransport");
  if (transport != "auto" && transport != "tcp") fields.Refuse("kvTransport", "auto or tcp");
  options.allow_shared_memory = transport == "auto";
  if (!fields.IsNull("kvTls")) {
    const Fields tls(fields.Get("kvTls"), "options.kvTls", error);
    options.kv_tls = {tls.Text("certificate"), tls.Text("key"), tls.Text("authority")};
  }
  const Napi::Value group = fields.Get("group");
  if (!group.IsEmpty() && !group.IsUndefined()) options.group = ReadGroupOptions(group, error);
  return options;
}

Napi::Object EngineInfo(Napi::Env env, Engine& engine) {
  const ModelFacts& facts = engine.facts();
  const EngineOptions& options = engine.options();
  Napi::Object info = Napi::Object::New(env);
  info.Set("modelHash", facts.model_hash);
  info.Set("layout", facts.kv.Spell());
  info.Set("vocabSize", facts.vocab_size);
  info.Set("contextLength", facts.context_length);
  info.Set("attentions", facts.attentions);
  info.Set("pageBytes", static_cast<double>(facts.kv.page_bytes()));
  info.Set("kvBlocks", engine.kv_blocks());
  info.Set("slots", options.slots);
  info.Set("maxStepTokens", options.model.max_rows);
  info.Set("speculation", facts.drafts ? options.speculation : 0);
  info.Set("backend", options.model.backend == BackendKind::kRef ? "ref" : "cpu");
  info.Set("isa", facts.isa);
  info.Set("threads", facts.threads);
  info.Set("kvPort", engine.kv_port());
  info.Set("hostKey", HostKey());
  info.Set("weightBytes", static_cast<double>(facts.weight_bytes));
  info.Set("packedHit", facts.packed_hit);
  Napi::Object took = Napi::Object::New(env);
  took.Set("kernels", facts.kernels_ms);
  took.Set("weights", facts.weights_ms);
  took.Set("pool", engine.pool_ms());
  info.Set("openMs", took);
  Napi::Array warnings = Napi::Array::New(env, facts.warnings.size());
  for (uint32_t i = 0; i < facts.warnings.size(); ++i) warnings.Set(i, facts.warnings[i]);
  info.Set("warnings", warnings);
  return info;
}

SequenceSpec ReadSequenceSpec(const Napi::Value& value, std::string* error) {
  const Fields fields(value, "spec", error);
  const Fields generation = fields.Object("generation");
  SequenceSpec spec;
  spec.tokens = generation.Ints("tokens");
  spec.prompt_length = generation.Integer("promptLength");
  spec.max_new_tokens = generation.Integer("maxNewTokens");
  const Fields sampling = generation.Object("sampling");
  SampleParams& params = spec.sampling;
  params.temperature = static_cast<float>(sampling.Number("temperature"));
  params.top_k = sampling.Int("topK");
  params.top_p = static_cast<float>(sampling.Number("topP"));
  params.min_p = static_cast<float>(sampling.Number("minP"));
  params.seed = static_cast<uint64_t>(sampling.Integer("seed"));
  params.frequency_penalty = static_cast<float>(sampling.Number("frequencyPenalty"));
  params.presence_penalty = static_cast<float>(sampling.Number("presencePenalty"));
  params.repetition_penalty = static_cast<float>(sampling.Number("repetitionPenalty"));
  params.bias_ids = sampling.Ints("logitBiasIds");
  params.bias_values = sampling.Floats("logitBiasValues");
  spec.stop_tokens = sampling.Ints("stopTokens");
  spec.min_new_tokens = sampling.Integer("minNewTokens");
  params.top_logprobs = sampling.Int("topLogprobs");
  const std::string mode = fields.Text("mode");
  if (mode != "compute" && mode != "receive") fields.Refuse("mode", "compute or receive");
  spec.receive = mode == "receive";
  spec.deadline_ms = fields.Integer("deadlineMs");
  spec.reserve = fields.Integer("reserve");
  return spec;
}

ExportTarget ReadExportTarget(const Napi::Value& value, std::string* error) {
  const Fields fields(value, "target", error);
  ExportTarget target;
  target.host = fields.Text("host");
  target.port = fields.Int("port");
  target.host_key = fields.Text("hostKey");
  target.epoch = fields.Integer("epoch");
  target.remote = ReadHandle(fields.Get("handle"), error);
  target.cached_tokens = fields.Int("cachedTokens");
  target.deadline_ms = fields.Integer("deadlineMs");
  return target;
}

class EngineObject : public Napi::ObjectWrap<EngineObject> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "Engine",
                       {InstanceMethod<&EngineObject::SetEpoch>("setEpoch"),
                        InstanceMethod<&EngineObject::OpenSequence>("openSequence"),
                        InstanceMethod<&EngineObject::ExportTo>("exportTo"),
                        InstanceMethod<&EngineObject::Attach>("attach"),
                        InstanceMethod<&EngineObject::CloseSequence>("closeSequence"),
                        InstanceMethod<&EngineObject::SetMask>("setMask"),
                        InstanceMethod<&EngineObject::Submit>("submit"), InstanceMethod<&EngineObject::Stats>("stats"),
                        InstanceMethod<&EngineObject::PrefixHashes>("prefixHashes"),
                        InstanceMethod<&EngineObject::CheckInvariants>("checkInvariants"),
                        InstanceMethod<&EngineObject::StartTrace>("startTrace"),
                        InstanceMethod<&EngineObject::TakeTrace>("takeTrace"),
                        InstanceMethod<&EngineObject::Close>("close")});
  }

  // Not callable from JavaScript: openEngine alone makes one, and the class is not exported.
  explicit EngineObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EngineObject>(info) {
    if (!info[0].IsExternal()) {
      ThrowBadArgument(info.Env(), "an engine is made by openEngine");
      return;
    }
    bridge_ = *info[0].As<Napi::External<std::shared_ptr<Bridge>>>().Data();
    info.This().As<Napi::Object>().Set("info", EngineInfo(info.Env(), bridge_->engine()));
    const bool one_of_several = bridge_->engine().options().group.has_value();
    info.This().As<Napi::Object>().Set("group", one_of_several ? GroupObject(info.Env(), bridge_) : info.Env().Null());
  }

  void Finalize(Napi::BasicEnv) override {
    if (bridge_ != nullptr) bridge_->Abandon();
  }

 private:
  Engine& engine() { return bridge_->engine(); }

  Napi::Value SetEpoch(const Napi::CallbackInfo& info) {
    if (!info[0].IsNumber()) return ThrowBadArgument(info.Env(), "epoch must be a number");
    return Done(info, engine().SetEpoch(info[0].As<Napi::Number>().Int64Value()));
  }

  Napi::Value OpenSequence(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    std::string error;
    SequenceSpec spec = ReadSequenceSpec(info[0], &error);
    if (!error.empty()) return ThrowBadArgument(env, error);
    const Result<OpenedSequence> opened = engine().OpenSequence(std::move(spec));
    if (!opened.ok()) return Throw(env, opened.status());
    Napi::Object result = Napi::Object::New(env);
    result.Set("handle", ToObject(env, opened.value().ref));
    result.Set("cachedTokens", opened.value().cached_tokens);
    return result;
  }

  Napi::Value ExportTo(const Napi::CallbackInfo& info) {
    std::string error;
    const SequenceRef ref = ReadHandle(info[0], &error);
    const ExportTarget target = ReadExportTarget(info[1], &error);
    if (!error.empty()) return ThrowBadArgument(info.Env(), error);
    return Done(info, engine().ExportTo(ref, target));
  }

  Napi::Value Attach(const Napi::CallbackInfo& info) {
    std::string error;
    const SequenceRef ref = ReadHandle(info[0], &error);
    if (error.empty() && !info[1].IsNull() && !info[1].IsNumber()) error = "firstToken must be a number or null";
    if (!error.empty()) return ThrowBadArgument(info.Env(), error);
    std::optional<int32_t> first_token;
    if (info[1].IsNumber()) first_token = info[1].As<Napi::Number>().Int32Value();
    const Result<int> length = engine().Attach(ref, first_token);
    if (!length.ok()) return Throw(info.Env(), length.status());
    return Napi::Number::New(info.Env(), length.value());
  }

  Napi::Value CloseSequence(const Napi::CallbackInfo& info) {
    std::string error;
    const SequenceRef ref = ReadHandle(info[0], &error);
    if (error.empty() && !info[1].IsBoolean()) error = "keep must be true or false";
    if (!error.empty()) return ThrowBadArgument(info.Env(), error);
    const Result<bool> running = engine().CloseSequence(ref, info[1].As<Napi::Boolean>().Value());
    if (!running.ok()) return Throw(info.Env(), running.status());
    return Napi::Boolean::New(info.Env(), running.value());
  }

  Napi::Value SetMask(const Napi::CallbackInfo& info) {
    std::string error;
    const SequenceRef ref = ReadHandle(info[0], &error);
    std::optional<std::vector<uint32_t>> mask;
    if (error.empty() && !info[1].IsNull()) {
      if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
        return ThrowBadArgument(info.Env(), "mask must be a Uint32Array or null");
      }
      const auto words = info[1].As<Napi::Uint32Array>();
      mask.emplace(words.Data(), words.Data() + words.ElementLength());
    }
    if (!error.empty()) return ThrowBadArgument(info.Env(), error);
    return Done(info, engine().SetMask(ref, std::move(mask)));
  }

  Napi::Value Submit(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_int32_array) {
      return ThrowBadArgument(env, "plan must be an Int32Array");
    }
    const auto plan = info[0].As<Napi::Int32Array>();
    const Result<int64_t> number = engine().Submit({plan.Data(), plan.ElementLength()});
    if (!number.ok()) return Throw(env, number.status());
    return Napi::Number::New(env, static_cast<double>(number.value()));
  }

  Napi::Value Stats(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const Result<EngineStats> counted = engine().Stats();
    if (!counted.ok()) return Throw(env, counted.status());
    const EngineStats& from = counted.value();
    Napi::Object stats = Napi::Object::New(env);
    Napi::Object blocks = Napi::Object::New(env);
    for (size_t i = 0; i < from.blocks.size(); ++i) blocks.Set(kBlockStateNames[i], from.blocks[i]);
    stats.Set("blocks", blocks);
    Napi::Object cache = Napi::Object::New(env);
    cache.Set("pool", ToObject(env, from.pool));
    cache.Set("second", ToObject(env, from.second_tier));
    stats.Set("cache", cache);
    const auto set = [&](const char* name, auto value) { stats.Set(name, static_cast<double>(value)); };
    set("blocksAvailable", from.blocks_available);
    set("sequences", from.sequences);
    set("steps", from.steps);
    set("computeMs", from.compute_ms);
    set("prefillTokens", from.prefill_tokens);
    set("decodeTokens", from.decode_tokens);
    set("prefixCachedTokens", from.prefix_cached_tokens);
    set("draftsProposed", from.drafts_proposed);
    set("draftsVerified", from.drafts_verified);
    set("draftsAccepted", from.drafts_accepted);
    set("pagesSent", from.sent.pages);
    set("bytesSent", from.sent.bytes);
    set("pagesReceived", from.received.pages);
    set("bytesReceived", from.received.bytes);
    // An engine has one side of the transport; the other one counts nothing.
    Napi::Object refused = Napi::Object::New(env);
    for (int i = 0; i < kFrameRefusals; ++i) {
      const auto cause = static_cast<size_t>(i);
      refused.Set(FrameRefusalName(static_cast<FrameRefusal>(i)),
                  static_cast<double>(from.sent.refused[cause] + from.received.refused[cause]));
    }
    stats.Set("framesRefused", refused);
    set("duplicatePages", from.sent.duplicates + from.received.duplicates);
    return stats;
  }

  Napi::Value PrefixHashes(const Napi::CallbackInfo& info) {
    const Result<std::vector<uint8_t>> hashes = engine().PrefixHashes();
    if (!hashes.ok()) return Throw(info.Env(), hashes.status());
    return ToArray<Napi::Uint8Array>(info.Env(), hashes.value());
  }

  Napi::Value CheckInvariants(const Napi::CallbackInfo& info) {
    const Result<std::string> broken = engine().CheckInvariants();
    if (!broken.ok()) return Throw(info.Env(), broken.status());
    if (broken.value().empty()) return info.Env().Null();
    return Napi::String::New(info.Env(), broken.value());
  }

  Napi::Value StartTrace(const Napi::CallbackInfo& info) {
    trace::Start();
    return info.Env().Undefined();
  }

  Napi::Value TakeTrace(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    std::map<std::string, int> names;
    std::map<int, int> threads;
    std::vector<double> spans;
    for (const trace::Event& event : trace::Take()) {
      const auto name = names.emplace(event.name, static_cast<int>(names.size())).first->second;
      const auto thread = threads.emplace(event.thread, static_cast<int>(threads.size())).first->second;
      spans.insert(spans.end(), {double(name), double(thread), event.start_ms, event.ms});
    }
    Napi::Object result = Napi::Object::New(env);
    Napi::Array name_list = Napi::Array::New(env, names.size());
    for (const auto& [name, index] : names) name_list.Set(static_cast<uint32_t>(index), name);
    Napi::Array thread_list = Napi::Array::New(env, threads.size());
    for (const auto& [thread, index] : threads) thread_list.Set(static_cast<uint32_t>(index), trace::ThreadName(thread));
    result.Set("names", name_list);
    result.Set("threads", thread_list);
    result.Set("spans", ToArray<Napi::Float64Array>(env, spans));
    return result;
  }

  Napi::Value Close(const Napi::CallbackInfo& info) { return bridge_->Close(info.Env()); }

  static Napi::Value Done(const Napi::CallbackInfo& info, const Status& status) {
    return status.ok() ? info.Env().Undefined() : Throw(info.Env(), status);
  }

  std::shared_ptr<Bridge> bridge_;
};

Napi::Value OpenEngine(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string error;
  EngineOptions options = ReadEngineOptions(info[0], &error);
  if (error.empty() && !info[1].IsObject()) error = "listener must be an object";
  if (!error.empty()) {
    const auto deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(ToError(env, Status(Code::kBadArgument, error)).Value());
    return deferred.Promise();
  }
  return Bridge::Open(env, std::move(options), info[1].As<Napi::Object>(),
                      [](Napi::Env opened_env, std::shared_ptr<Bridge> bridge) -> Napi::Value {
                        const auto* constructor = opened_env.GetInstanceData<Napi::FunctionReference>();
                        return constructor->New({Napi::External<std::shared_ptr<Bridge>>::New(opened_env, &bridge)});
                      });
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Napi::FunctionReference(Napi::Persistent(EngineObject::Define(env))));
  exports.Set("openEngine", Napi::Function::New(env, OpenEngine, "openEngine"));
  return exports;
}

}  // namespace

NODE_API_MODULE(margay, Init)

}  // namespace margay
