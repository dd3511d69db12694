#include "addon/group_object.h"

#include <algorithm>
#include <utility>

#include "addon/fields.h"
#include "addon/messages.h"

namespace margay {
namespace {

Napi::Value Throw(Napi::Env env, const Status& status) {
  ToError(env, status).ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Value Rejected(Napi::Env env, const Status& status) {
  const auto deferred = Napi::Promise::Deferred::New(env);
  deferred.Reject(ToError(env, status).Value());
  return deferred.Promise();
}

Napi::Value PromiseOf(Napi::Env env, Bridge* bridge, const Result<CallId>& call) {
  return call.ok() ? bridge->Await(env, call.value()) : Rejected(env, call.status());
}

// Lists of lists of whole numbers.
ExpertOwners ReadOwners(const Fields& map, std::string* error) {
  ExpertOwners owners;
  const Napi::Value experts = map.Get("owners");
  if (!error->empty()) return owners;
  if (!experts.IsArray()) {
    map.Refuse("owners", "an array");
    return owners;
  }
  const auto list = experts.As<Napi::Array>();
  for (uint32_t expert = 0; expert < list.Length() && error->empty(); ++expert) {
    std::vector<int>& holders = owners.emplace_back();
    const Napi::Value holder_list = list.Get(expert);
    if (!holder_list.IsArray()) {
      map.Refuse("owners", "an array of arrays");
      return owners;
    }
    const auto places = holder_list.As<Napi::Array>();
    for (uint32_t i = 0; i < places.Length(); ++i) {
      const Napi::Value place = places.Get(i);
      if (!place.IsNumber()) {
        map.Refuse("owners", "an array of arrays of numbers");
        return owners;
      }
      holders.push_back(place.As<Napi::Number>().Int32Value());
    }
  }
  return owners;
}

uint64_t ReadCount(const Fields& fields, const char* name) {
  const int64_t value = fields.Integer(name);
  if (value < 0) fields.Refuse(name, "0 or more");
  return static_cast<uint64_t>(std::max<int64_t>(value, 0));
}

GroupOrder ReadGroupOrder(const Napi::Value& value, std::string* error) {
  const Fields fields(value, "spec", error);
  GroupOrder order;
  order.epoch = ReadCount(fields, "epoch");
  order.self = fields.Int("self");
  const Napi::Value members = fields.Get("members");
  if (!error->empty()) return order;
  if (!members.IsArray()) {
    fields.Refuse("members", "an array");
    return order;
  }
  const auto list = members.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length() && error->empty(); ++i) {
    const Fields from(list.Get(i), "members", error);
    GroupMember member;
    member.rank_id = from.Text("rankId");
    member.host = from.Text("host");
    member.port = from.Int("port");
    member.host_key = from.Text("hostKey");
    order.members.push_back(std::move(member));
  }
  order.secret = fields.Text("secret");
  const Fields map = fields.Object("map");
  order.map_version = ReadCount(map, "version");
  order.owners = ReadOwners(map, error);
  return order;
}

Napi::Value StatsObject(Napi::Env env, const ExchangeStats& from) {
  Napi::Object stats = Napi::Object::New(env);
  std::vector<double> loads(from.routing.loads.begin(), from.routing.loads.end());
  stats.Set("expertLoads", ToArray<Napi::Float64Array>(env, loads));
  const auto set = [&](const char* name, auto value) { stats.Set(name, static_cast<double>(value)); };
  set("routedRows", from.routing.rows);
  set("realChoices", from.routing.real_choices);
  set("zeroChoices", from.routing.zero_choices);
  set("bytesDispatched", from.exchange.dispatch_bytes);
  set("bytesCombined", from.exchange.combine_bytes);
  constexpr double kNsPerMs = 1e6;
  set("exposedMs", static_cast<double>(from.exchange.dispatch_wait_ns + from.exchange.combine_wait_ns) / kNsPerMs);
  set("skewMs", static_cast<double>(from.exchange.begin_wait_ns) / kNsPerMs);
  set("staleMessages", from.stale_messages);
  return stats;
}

}  // namespace

GroupOptions ReadGroupOptions(const Napi::Value& value, std::string* error) {
  const Fields fields(value, "group", error);
  GroupOptions options;
  options.ranks = fields.Int("ranks");
  options.host = fields.Text("exchangeHost");
  options.port = fields.Int("exchangePort");
  const std::string transport = fields.Text("exchangeTransport");
  if (transport != "auto" && transport != "tcp") fields.Refuse("exchangeTransport", "auto or tcp");
  options.shared_memory = transport == "auto";
  const std::string payload = fields.Text("exchangePayload");
  if (payload != "bf16" && payload != "fp8") fields.Refuse("exchangePayload", "bf16 or fp8");
  options.fp8 = payload == "fp8";
  options.deadline_ms = fields.Int("exchangeDeadlineMs");
  if (options.ranks < 1) fields.Refuse("ranks", "at least 1");
  return options;
}

Napi::Value GroupObject(Napi::Env env, const std::shared_ptr<Bridge>& bridge) {
  Napi::Object group = Napi::Object::New(env);
  group.Set("experts", bridge->engine().facts().experts);
  group.Set("exchangePort", bridge->engine().exchange_port());
  const auto define = [&](const char* name, auto body) {
    group.Set(name, Napi::Function::New(env, [bridge, body](const Napi::CallbackInfo& info) -> Napi::Value {
                return body(info, bridge.get());
              }, name));
  };
  define("joinGroup", [](const Napi::CallbackInfo& info, Bridge* at) -> Napi::Value {
    std::string error;
    const GroupOrder order = ReadGroupOrder(info[0], &error);
    if (!error.empty()) return Rejected(info.Env(), Status(Code::kBadArgument, error));
    return PromiseOf(info.Env(), at, at->engine().JoinGroup(order));
  });
  define("leaveGroup", [](const Napi::CallbackInfo& info, Bridge* at) -> Napi::Value {
    if (!info[0].IsBoolean()) return Rejected(info.Env(), Status(Code::kBadArgument, "atOnce must be true or false"));
    return PromiseOf(info.Env(), at, at->engine().LeaveGroup(info[0].As<Napi::Boolean>().Value()));
  });
  define("prepareExperts", [](const Napi::CallbackInfo& info, Bridge* at) -> Napi::Value {
    std::string error;
    const Fields map(info[0], "map", &error);
    const uint64_t version = ReadCount(map, "version");
    ExpertOwners owners = ReadOwners(map, &error);
    if (!error.empty()) return Rejected(info.Env(), Status(Code::kBadArgument, error));
    return PromiseOf(info.Env(), at, at->engine().PrepareExperts(version, std::move(owners)));
  });
  define("switchExperts", [](const Napi::CallbackInfo& info, Bridge* at) -> Napi::Value {
    if (!info[0].IsNumber()) return Throw(info.Env(), Status(Code::kBadArgument, "version must be a number"));
    const int64_t version = info[0].As<Napi::Number>().Int64Value();
    if (version < 0) return Throw(info.Env(), Status(Code::kBadArgument, "version must be 0 or more"));
    const Status switched = at->engine().SwitchExperts(static_cast<uint64_t>(version));
    return switched.ok() ? info.Env().Undefined() : Throw(info.Env(), switched);
  });
  define("exchangeStats", [](const Napi::CallbackInfo& info, Bridge* at) -> Napi::Value {
    return StatsObject(info.Env(), at->engine().exchange_stats());
  });
  return group;
}

}  // namespace margay
