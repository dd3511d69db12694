// fuzz SEED SECONDS: readers of bytes that others wrote, fed with damaged variants of good ones. Whatever comes, it is
// taken or refused with an error; the sanitizers find the rest. The same seed makes the same inputs.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "claim.h"
#include "comm/mailbox.h"
#include "comm/wire.h"
#include "exchange_group.h"
#include "model/model_config.h"
#include "mutation.h"
#include "raw_peer.h"
#include "stage.h"
#include "weights/checkpoint.h"

namespace margay {
namespace {

using Clock = std::chrono::steady_clock;

const std::vector<std::string> kJsonWords = {
    "[",  "]",    "{",    "}",    ",",        ":",         "\"",    "\\u",          "\\ud800", "null", "true", "-",
    "1e", "1e999", "0x1", "-0.5", "[[[[[[[[", "{\"a\":{", "\\u0000", "\"dtype\"", "\"data_offsets\"", "\"shape\"", "\"BF16\"",
    "\"F8_E4M3\"", "\xff", "\xc3\xa9", "9223372036854775808", "18446744073709551616"};

std::string Safetensors(const std::string& header, uint64_t told, size_t data) {
  return std::string(reinterpret_cast<const char*>(&told), sizeof told) + header + std::string(data, '\x3c');
}

void Put(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Every tensor of a checkpoint that opens can be read to its last byte.
std::string ReadAll(const std::string& folder) {
  Result<Checkpoint> checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) return checkpoint.status().message().empty() ? "an error without a sentence" : "";
  for (const auto& [name, tensor] : checkpoint->tensors()) {
    if (tensor.bytes > size_t{1} << 20) return "a tensor is larger than its file";
    std::vector<std::byte> bytes(tensor.bytes);
    if (const Status read = checkpoint->Read(tensor, 0, bytes.data(), bytes.size()); !read.ok()) return read.message();
  }
  return "";
}

std::string FuzzCheckpoints(Mutation mutation, Clock::time_point until) {
  std::string folder = (std::filesystem::temp_directory_path() / "margay-fuzz-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return "no folder";
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a.weight":{"dtype":"BF16","shape":[4,8],"data_offsets":[0,64]},)"
      R"("b":{"dtype":"F32","shape":[3],"data_offsets":[64,76]},"c":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[76,80]}})";
  const std::string index = R"({"metadata":{"total_size":80},"weight_map":{"a.weight":"model.safetensors","b":"x.safetensors"}})";
  Put(folder + "/config.json", "{}");
  std::string broken;
  while (broken.empty() && Clock::now() < until) {
    const bool heads = mutation.Below(4) > 0;
    const std::string text = heads ? mutation.Of(header, kJsonWords) : header;
    const uint64_t told = mutation.Below(8) == 0 ? mutation.Number() : text.size();
    Put(folder + "/model.safetensors", Safetensors(text, told, mutation.Below(4) == 0 ? mutation.Below(200) : 80));
    std::filesystem::remove(folder + "/model.safetensors.index.json");
    if (!heads) Put(folder + "/model.safetensors.index.json", mutation.Of(index, kJsonWords));
    broken = ReadAll(folder);
  }
  std::filesystem::remove_all(folder);
  return broken;
}

std::string FuzzConfigs(Mutation mutation, Clock::time_point until) {
  std::ifstream file("models/nano/config.json");
  const std::string good((std::istreambuf_iterator<char>(file)), {});
  if (!ParseModelConfig(good, "").ok()) return "the good config is refused";
  while (Clock::now() < until) {
    const Result<ModelConfig> config = ParseModelConfig(mutation.Of(good, kJsonWords), "");
    if (!config.ok() && config.status().message().empty()) return "an error without a sentence";
  }
  return "";
}

// A head with a few fields at odd values, its checksum right more often than not.
FrameHead OddHead(Mutation& mutation, FrameHead head) {
  for (uint64_t changes = mutation.Below(4); changes > 0; --changes) {
    const auto number = static_cast<int32_t>(mutation.Number());
    switch (mutation.Below(12)) {
      case 0: head.type = static_cast<FrameType>(number % 8); break;
      case 1: head.payload_bytes = static_cast<uint32_t>(number); break;
      case 2: head.ticket = static_cast<uint64_t>(number); break;
      case 3: head.epoch = number; break;
      case 4: head.sequence.slot = number; break;
      case 5: head.attention = number; break;
      case 6: head.block = number; break;
      case 7: head.rows = number; break;
      case 8: head.source_block = number; break;
      case 9: head.first_row = number; break;
      case 10: head.cause = static_cast<uint32_t>(number); break;
      default: head.payload_checksum = mutation.Number();
    }
  }
  head.Seal();
  if (mutation.Below(8) == 0) reinterpret_cast<unsigned char*>(&head)[mutation.Below(sizeof head)] ^= 1;
  return head;
}

std::string FuzzReceiver(Mutation mutation, Clock::time_point until) {
  const auto payload = PayloadOf(kBlockTokens, 1);
  Prefiller prefiller(8);
  Finding finding;
  while (!finding.any() && Clock::now() < until) {
    Stage stage;
    for (int connection = 0; connection < 8; ++connection) {
      const bool mapped = mutation.Below(2) == 0;
      const int port = stage.decoder.receiver->port();
      RawPeer peer = mapped ? RawPeer::Unix(port) : RawPeer::Tcp(port);
      if (mapped) {
        peer.GreetWithPool(prefiller.pool->memory_fd());
      } else {
        peer.Greet();
      }
      for (int frame = 0; frame < 16; ++frame) {
        FrameHead head = PageOf(stage.sequence, static_cast<int>(mutation.Below(3)), static_cast<int>(1 + mutation.Below(2)),
                                kBlockTokens, payload);
        if (mapped) head.type = FrameType::kMappedPage;
        head = OddHead(mutation, head);
        peer.Send(&head, sizeof head);
        if (head.type == FrameType::kPage) peer.Send(payload.data(), mutation.Below(4) == 0 ? mutation.Below(payload.size()) : payload.size());
      }
    }
    // Good pages are served beside and after all that.
    RawPeer good = stage.Greeted();
    good.Send(PageOf(stage.sequence, 0, 3, 8, PayloadOf(8, 1)), PayloadOf(8, 1));
    finding.Same("a good page", good.Heard(), "ack");
    stage.decoder.Drop(stage.sequence, stage.id);
    finding.Same("decode pool", stage.decoder.AtRest(), "");
  }
  return finding.what();
}

// Answers of a receiver gone mad: the transfer ends by its deadline, whatever they say.
std::string FuzzSender(Mutation mutation, Clock::time_point until) {
  Finding finding;
  while (!finding.any() && Clock::now() < until) {
    const Fd listener = Must(Listen(*TcpAddress("127.0.0.1", 0)));
    Prefiller prefiller;
    const auto tokens = TokensFrom(0, 200);
    const SequenceKvId id = prefiller.Open(tokens);
    const SendTarget target{"127.0.0.1", PortOf(listener), false, kTestEpoch, {1, 1}, 0, NowMs() + 200};
    Must(prefiller.sender->Begin({1, 1}, id, 200, target));
    prefiller.Compute({1, 1}, id, 1, tokens, 0, 200);
    while (prefiller.outcomes.count() == 0) {
      pollfd polled{listener.get(), POLLIN, 0};
      PollUntil({&polled, 1}, NowMs() + 20);
      Fd fd = Accept(listener);
      if (!fd) continue;
      FrameHead answer;
      for (int frame = 0; frame < 16; ++frame) {
        answer.type = frame == 0 ? FrameType::kWelcome : mutation.Below(2) == 0 ? FrameType::kAck : FrameType::kRefuse;
        answer.ticket = static_cast<uint64_t>(frame);
        answer.cause = static_cast<uint32_t>(mutation.Below(12));
        const FrameHead odd = frame == 0 && mutation.Below(8) > 0 ? (answer.Seal(), answer) : OddHead(mutation, answer);
        (void)Send(fd, std::as_bytes(std::span(&odd, 1)));
      }
      pollfd closing{fd.get(), POLLIN, 0};
      PollUntil({&closing, 1}, NowMs() + 20);
    }
    prefiller.pool->Close(id, false);
    finding.Same("outcomes", prefiller.outcomes.count(), size_t{1});
    finding.Same("prefill pool", prefiller.AtRest(), "");
  }
  return finding.what();
}

GroupSpec SpecOfTwo(int self) {
  GroupSpec spec = SmallSpec(2);
  spec.self = self;
  spec.secret = "secret";
  spec.join_deadline_ms = 300;
  spec.deadline_ms = 60;
  return spec;
}

// A frame as member 1 sends it, some of its numbers odd, and bytes that may or may not be what it tells of.
void SendOddFrame(Mutation& mutation, RawPeer* to, uint32_t step, uint32_t layer) {
  const GroupSpec spec = SpecOfTwo(1);
  ExchangeFrame frame;
  frame.from = 1;
  frame.epoch = spec.epoch;
  frame.kind = static_cast<FrameKind>(1 + mutation.Below(5));
  frame.number = frame.kind == FrameKind::kBegin ? step : layer;
  frame.value = frame.kind == FrameKind::kBegin ? 1 : mutation.Number();
  std::vector<ListEntry> list;
  if (frame.kind == FrameKind::kDispatch) {
    for (uint64_t i = mutation.Below(6); i > 0; --i) {
      list.push_back({static_cast<uint16_t>(mutation.Below(8) == 0 ? mutation.Number() : list.size() / 2),
                      static_cast<uint16_t>(mutation.Below(8) == 0 ? mutation.Number() : list.size() % 2 * 2), 1});
    }
    frame.entries = static_cast<uint32_t>(list.size());
    frame.rows = static_cast<uint32_t>((list.size() + 1) / 2);
    frame.bytes = list.size() * sizeof(ListEntry) + frame.rows * PayloadBytes(spec.payload, spec.hidden);
  } else if (frame.kind == FrameKind::kCombine) {
    frame.rows = static_cast<uint32_t>(mutation.Below(8));
    frame.bytes = frame.rows * ResultBytes(spec.payload, spec.hidden);
  }
  const size_t body = frame.bytes;
  for (uint64_t changes = mutation.Below(3); changes > 0; --changes) {
    const uint64_t number = mutation.Number();
    switch (mutation.Below(8)) {
      case 0: frame.kind = static_cast<FrameKind>(number); break;
      case 1: frame.number = static_cast<uint32_t>(number); break;
      case 2: frame.layer = static_cast<uint32_t>(number); break;
      case 3: frame.entries = static_cast<uint32_t>(number); break;
      case 4: frame.rows = static_cast<uint32_t>(number); break;
      case 5: frame.bytes = number; break;
      case 6: frame.epoch = number; break;
      default: frame.value = number;
    }
  }
  frame.Seal();
  if (mutation.Below(16) == 0) reinterpret_cast<unsigned char*>(&frame)[mutation.Below(sizeof frame)] ^= 1;
  std::vector<std::byte> bytes(sizeof frame + body);
  std::memcpy(bytes.data(), &frame, sizeof frame);
  if (!list.empty()) std::memcpy(bytes.data() + sizeof frame, list.data(), list.size() * sizeof(ListEntry));
  to->Send(bytes.data(), mutation.Below(8) == 0 ? mutation.Below(bytes.size()) : bytes.size());
}

// Member 1 of two greets as it should, mostly, and then talks nonsense: member 0 is out by its deadline.
std::string FuzzExchange(Mutation mutation, Clock::time_point until) {
  Finding finding;
  while (!finding.any() && Clock::now() < until) {
    auto endpoint = Must(ExchangeEndpoint::Open("127.0.0.1", 0));
    GroupSpec spec = SpecOfTwo(0);
    Greeting hello = GreetingRules(SpecOfTwo(1)).Make(GreetingType::kHello, 0);
    const bool good = mutation.Below(4) > 0;
    if (!good) reinterpret_cast<unsigned char*>(&hello)[mutation.Below(sizeof hello)] ^= 1 << mutation.Below(8);
    RawPeer peer = RawPeer::Tcp(endpoint->port());
    peer.Send(&hello, !good && mutation.Below(4) == 0 ? mutation.Below(sizeof hello) : sizeof hello);
    auto exchange = endpoint->Join(spec, {});
    finding.Same("joining", exchange.ok(), good);
    if (!exchange.ok()) continue;
    Status ran;
    std::vector<float> out;
    for (uint32_t step = 1; ran.ok() && step < 20; ++step) {
      for (int frame = 0; frame < 4; ++frame) SendOddFrame(mutation, &peer, step, step);
      ran = (*exchange)->BeginStep();
      if (ran.ok()) ran = RunLayer(spec, exchange->get(), 0, MakeRows(spec, static_cast<int>(mutation.Below(4)), step), &out);
    }
    finding.Same("the code", std::string(CodeName(ran.code())), "group_lost");
    finding.Expect((*exchange)->loss().guilty < 2, "a member that is none is guilty");
  }
  return finding.what();
}

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  using namespace margay;
  if (argc != 3) {
    std::fprintf(stderr, "usage: fuzz SEED SECONDS\n");
    return 2;
  }
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10);
  const auto share = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::atof(argv[2]) / 5));
  Claims claims;
  const auto check = [&](const std::string& claim, auto fuzz) {
    const std::string broken = fuzz(Mutation(seed), Clock::now() + share);
    claims.Check(claim, broken.empty() ? "" : broken + " (seed " + std::to_string(seed) + ")");
  };
  check("damaged checkpoints are read whole or refused", FuzzCheckpoints);
  check("damaged configurations are taken or refused", FuzzConfigs);
  check("a receiver refuses odd frames and serves good ones", FuzzReceiver);
  check("a sender fed with odd answers ends in time", FuzzSender);
  check("a member of a group survives what another one says", FuzzExchange);
  return claims.ExitCode();
}
