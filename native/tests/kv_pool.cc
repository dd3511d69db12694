// What the KV pool promises.
//   kv_pool                      the claims
//   kv_pool states               the transition table, as JSON
//   kv_pool hashes <model> <n>   block hashes of the tokens i * 2654435761 mod 2^31, in hexadecimal
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "block_hashes.h"
#include "claim.h"
#include "core/sha256.h"
#include "kv/kv_pool.h"

namespace margay {
namespace {

constexpr KvLayout kLayout{2, 4, KvType::kF32};
using Tokens = std::vector<int32_t>;

std::unique_ptr<KvPool> NewPool(int blocks) {
  auto pool = KvPool::Create(kLayout, blocks, "model");
  if (!pool.ok()) std::abort();
  return std::move(*pool);
}

Tokens Count(int from, int count) {
  Tokens tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

int CountOf(const KvPool& pool, BlockState state) { return pool.Counts()[static_cast<size_t>(state)]; }

// Computes a whole sequence and gives it back.
int RunThrough(KvPool& pool, const Tokens& tokens, bool keep = true) {
  const auto opened = pool.Open(tokens, static_cast<int>(tokens.size()), KvUse::kCompute);
  if (!opened.ok()) return -1;
  pool.Advance(opened.value().id, tokens, static_cast<int>(tokens.size()));
  pool.Close(opened.value().id, keep);
  return opened.value().cached_tokens;
}

std::string BlocksOnDemand() {
  Finding finding;
  const auto pool = NewPool(4);
  RunThrough(*pool, Count(1000, 128));  // two blocks stay cached
  const Tokens tokens = Count(0, 300);
  const auto opened = pool->Open(std::span(tokens).first(60), 60, KvUse::kCompute);
  const SequenceKvId id = opened.value().id;
  const std::span<const int32_t> before = pool->BlockTable(id);
  finding.Expect(pool->Grow(id, 64).ok(), "a block with room was not enough");
  finding.Same("blocks within the first", pool->BlockTable(id).size(), size_t{1});
  finding.Expect(pool->Grow(id, 200).ok(), "refused although cached blocks could go");
  finding.Same("blocks after growth", pool->BlockTable(id).size(), size_t{4});
  finding.Expect(before.data() == pool->BlockTable(id).data(), "the table moved");
  finding.Expect(pool->Grow(id, 257).code() == Code::kNoBlocks, "grew beyond the pool");
  finding.Expect(pool->Grow(id, 10).ok(), "a smaller capacity was refused");
  finding.Same("blocks after refusal", pool->BlockTable(id).size(), size_t{4});
  finding.Expect(pool->Grow(99, 64).code() == Code::kStaleHandle, "an unknown sequence grew");
  pool->Advance(id, tokens, 250);
  finding.Same("broken", pool->CheckInvariants(), "");
  pool->Close(id, true);
  finding.Same("cached blocks", CountOf(*pool, BlockState::kCached), 4);
  return finding.what();
}

std::string PrefixIsShared() {
  Finding finding;
  const auto pool = NewPool(8);
  const Tokens tokens = Count(0, 200);
  const auto first = pool->Open(tokens, 200, KvUse::kCompute);
  pool->Advance(first.value().id, tokens, 130);
  const auto second = pool->Open(tokens, 200, KvUse::kCompute);  // while the first is still at work
  finding.Same("cached tokens", second.value().cached_tokens, 128);
  finding.Same("shared block", pool->BlockTable(second.value().id)[1], pool->BlockTable(first.value().id)[1]);
  finding.Expect(pool->BlockTable(second.value().id)[2] != pool->BlockTable(first.value().id)[2],
                 "a partial block is shared");
  pool->Close(first.value().id, true);
  pool->Close(second.value().id, true);
  finding.Same("cached blocks", CountOf(*pool, BlockState::kCached), 3);
  finding.Same("free blocks", CountOf(*pool, BlockState::kFree), 5);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string OneTokenIsLeft() {
  Finding finding;
  const auto pool = NewPool(8);
  RunThrough(*pool, Count(0, 128));
  finding.Same("cached of 128", RunThrough(*pool, Count(0, 128)), 127);
  finding.Same("cached of 129", RunThrough(*pool, Count(0, 129)), 128);
  return finding.what();
}

void WriteRows(const KvPool& pool, std::span<const int32_t> table, const Tokens& tokens, int from, int to) {
  for (int attention = 0; attention < kLayout.attentions; ++attention) {
    for (int i = from; i < to; ++i) {
      std::byte* row = pool.memory().row(attention, table[static_cast<size_t>(i / kBlockTokens)], i % kBlockTokens);
      *reinterpret_cast<float*>(row) = static_cast<float>(tokens[static_cast<size_t>(i)] + attention * 10'000);
    }
  }
}

// Empty, or the first row that is not its token's.
std::string ReadRows(const KvPool& pool, std::span<const int32_t> table, const Tokens& tokens, int count) {
  for (int attention = 0; attention < kLayout.attentions; ++attention) {
    for (int i = 0; i < count; ++i) {
      const std::byte* row = pool.memory().row(attention, table[static_cast<size_t>(i / kBlockTokens)], i % kBlockTokens);
      const auto wanted = static_cast<float>(tokens[static_cast<size_t>(i)] + attention * 10'000);
      if (*reinterpret_cast<const float*>(row) != wanted) return "row " + std::to_string(i) + " is not its token's";
    }
  }
  return "";
}

std::string NextTurnGoesOn() {
  Finding finding;
  const auto pool = NewPool(8);
  Tokens tokens = Count(0, 100);
  for (int turn = 0; turn < 3; ++turn) {
    const int before = turn == 0 ? 0 : static_cast<int>(tokens.size()) - 71;  // the turn before without its last token
    const auto opened = pool->Open(tokens, static_cast<int>(tokens.size()) + 30, KvUse::kCompute).value();
    finding.Same("cached tokens in turn " + std::to_string(turn), opened.cached_tokens, before);
    const auto table = pool->BlockTable(opened.id);
    finding.Same("rows", ReadRows(*pool, table, tokens, opened.cached_tokens), "");
    for (int i = 0; i < 30; ++i) tokens.push_back(500 + turn * 100 + i);
    const int length = static_cast<int>(tokens.size()) - 1;  // the last token's row is never computed
    WriteRows(*pool, table, tokens, opened.cached_tokens, length);
    pool->Advance(opened.id, tokens, length);
    pool->Close(opened.id, true);
    for (int i = 0; i < 70; ++i) tokens.push_back(5000 + turn * 100 + i);
  }
  finding.Same("blocks in the cache", CountOf(*pool, BlockState::kCached), 6);  // no tail that another begins with
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string BranchesWithinABlock() {
  Finding finding;
  const auto pool = NewPool(8);
  const Tokens tokens = Count(0, 128);
  const auto first = pool->Open(tokens, 128, KvUse::kCompute).value();
  WriteRows(*pool, pool->BlockTable(first.id), tokens, 0, 128);
  pool->Advance(first.id, tokens, 128);
  Tokens other = Count(0, 90);
  for (int i = 0; i < 60; ++i) other.push_back(9000 + i);
  const auto second = pool->Open(other, 150, KvUse::kCompute).value();  // while the first still has the block
  finding.Same("cached tokens", second.cached_tokens, 90);
  const auto table = pool->BlockTable(second.id);
  finding.Expect(table[1] != pool->BlockTable(first.id)[1], "another's rows would be overwritten");
  finding.Same("shared rows", ReadRows(*pool, table, other, 90), "");
  WriteRows(*pool, table, other, 90, 150);
  pool->Advance(second.id, other, 150);
  finding.Same("rows of the first", ReadRows(*pool, pool->BlockTable(first.id), tokens, 128), "");
  const auto third = pool->Open(Count(0, 80), 80, KvUse::kCompute).value();  // ends within a cached block
  finding.Same("cached tokens of a beginning", third.cached_tokens, 79);
  for (const SequenceKvId id : {first.id, second.id, third.id}) pool->Close(id, true);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string TooFullToCopy() {
  Finding finding;
  const auto pool = NewPool(2);
  RunThrough(*pool, Count(0, 100));
  // Both blocks are cached, the second is the only one to be had.
  const auto opened = pool->Open(Count(0, 120), 120, KvUse::kCompute).value();
  finding.Same("cached tokens", opened.cached_tokens, 64);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string EqualContentStaysPrivate() {
  Finding finding;
  const auto pool = NewPool(8);
  const Tokens tokens = Count(0, 128);
  const auto a = pool->Open(tokens, 128, KvUse::kCompute);
  const auto b = pool->Open(tokens, 128, KvUse::kCompute);
  pool->Advance(a.value().id, tokens, 128);
  pool->Advance(b.value().id, tokens, 128);
  pool->Close(b.value().id, true);
  finding.Same("free after the second", CountOf(*pool, BlockState::kFree), 6);
  pool->Close(a.value().id, true);
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 2);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string OldestGoesFirst() {
  Finding finding;
  const auto pool = NewPool(6);
  RunThrough(*pool, Count(0, 192));     // 3 cached
  RunThrough(*pool, Count(1000, 128));  // 2 cached
  RunThrough(*pool, Count(0, 192));     // used again
  pool->TakeChanges();
  RunThrough(*pool, Count(5000, 65));  // 1 free and 1 evicted: the last block of the one not used for longest
  const auto second = BlockHashes("model", Count(1000, 128));
  const auto bytes = [](const BlockHash& hash) { return std::vector<uint8_t>(hash.begin(), hash.end()); };
  finding.Expect(pool->TakeChanges().removed == bytes(second[1]), "another block than the last of the second went first");
  RunThrough(*pool, Count(7000, 64));
  finding.Expect(pool->TakeChanges().removed == bytes(second[0]), "another block than the rest of the second went next");
  return finding.what();
}

std::string PinnedIsNotEvicted() {
  Finding finding;
  const auto pool = NewPool(4);
  RunThrough(*pool, Count(0, 129));
  const auto user = pool->Open(Count(0, 129), 129, KvUse::kCompute);  // two hits, one own
  finding.Same("available", pool->Available(), 1);
  const auto greedy = pool->Open(Count(9000, 65), 65, KvUse::kCompute);
  finding.Expect(!greedy.ok() && greedy.status().code() == Code::kNoBlocks, "two blocks were leased from one");
  finding.Same("available after refusal", pool->Available(), 1);
  finding.Same("broken", pool->CheckInvariants(), "");
  pool->Close(user.value().id, true);
  return finding.what();
}

std::string DroppedWhenNotKept() {
  Finding finding;
  const auto pool = NewPool(4);
  RunThrough(*pool, Count(0, 65));
  RunThrough(*pool, Count(0, 193), false);  // one hit stays, two own blocks go
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 1);
  finding.Same("free", CountOf(*pool, BlockState::kFree), 3);
  return finding.what();
}

std::string ReceivedThenAttached() {
  Finding finding;
  const auto pool = NewPool(4);
  const Tokens tokens = Count(0, 100);
  const SequenceKvId id = pool->Open(tokens, 140, KvUse::kReceive).value().id;
  finding.Expect(pool->Attach(id).code() == Code::kBadState, "attached without its pages");
  const auto leases = pool->StartFlight(id, 0, 2, Flight::kIn);
  for (const BlockLease& lease : leases.value()) {
    finding.Expect(pool->MarkReceiving(lease) && pool->MarkReceived(lease), "an arrival was refused");
  }
  pool->EndFlight(leases.value(), Flight::kIn);
  finding.Expect(pool->Attach(id).ok(), "complete, and not attached");
  finding.Same("attached", CountOf(*pool, BlockState::kAttached), 2);
  Tokens longer = Count(0, 140);
  pool->Advance(id, longer, 128);
  finding.Same("still attached", CountOf(*pool, BlockState::kAttached), 1);
  finding.Same("sealed", CountOf(*pool, BlockState::kSealed), 1);
  pool->Advance(id, longer, 129);
  pool->Close(id, true);
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 3);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string ArrivedPartIsKept() {
  Finding finding;
  const auto pool = NewPool(4);
  const Tokens tokens = Count(0, 200);
  const SequenceKvId id = pool->Open(tokens, 200, KvUse::kReceive).value().id;
  const auto leases = pool->StartFlight(id, 0, 4, Flight::kIn).value();
  for (const size_t block : {0u, 2u}) {
    pool->MarkReceiving(leases[block]);
    pool->MarkReceived(leases[block]);
  }
  pool->MarkReceiving(leases[1]);
  finding.Expect(!pool->AttachArrived(id).ok(), "attached while the receiver may write");
  pool->EndFlight(leases, Flight::kIn);
  finding.Same("usable", pool->AttachArrived(id).value(), 64);
  finding.Expect(!pool->MarkReceiving(leases[1]) && !pool->MarkReceiving(leases[2]), "a void lease was obeyed (B2)");
  pool->Advance(id, tokens, 200);
  pool->Close(id, true);
  finding.Same("cached", CountOf(*pool, BlockState::kCached), 4);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string HeldUntilFlightsEnd() {
  Finding finding;
  const auto pool = NewPool(2);
  const Tokens tokens = Count(0, 100);
  const SequenceKvId id = pool->Open(tokens, 100, KvUse::kCompute).value().id;
  const auto leases = pool->StartFlight(id, 0, 2, Flight::kOut).value();
  pool->Advance(id, tokens, 100);
  pool->Close(id, false);
  finding.Same("sending", CountOf(*pool, BlockState::kSending), 2);
  finding.Same("available", pool->Available(), 0);
  pool->EndFlight(leases, Flight::kOut);
  finding.Same("free", CountOf(*pool, BlockState::kFree), 2);
  // The block that was freed has a new life: who held it before holds it no more (B2).
  const SequenceKvId next = pool->Open(Count(900, 64), 64, KvUse::kCompute).value().id;
  const auto held = pool->StartFlight(next, 0, 1, Flight::kOut).value();
  finding.Same("block", held[0].block, leases[1].block);
  finding.Expect(held[0].generation != leases[1].generation, "a block came back under the same generation");
  pool->Advance(next, Count(900, 64), 64);
  pool->EndFlight(leases, Flight::kOut);
  finding.Same("still sending", CountOf(*pool, BlockState::kSending), 1);
  pool->EndFlight(held, Flight::kOut);
  pool->Close(next, true);
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

std::string ChangesAreNet() {
  Finding finding;
  const auto pool = NewPool(1);
  RunThrough(*pool, Count(0, 64));
  RunThrough(*pool, Count(100, 64));  // evicts it
  const KvChanges changes = pool->TakeChanges();
  const BlockHash last = BlockHashes("model", Count(100, 64))[0];
  finding.Expect(changes.removed.empty(), "told the removal of what was never told");
  finding.Expect(changes.stored == std::vector<uint8_t>(last.begin(), last.end()), "the stored hash is another");
  finding.Expect(pool->PrefixHashes() == changes.stored, "changes and list disagree");
  finding.Expect(pool->TakeChanges().stored.empty(), "changes were told twice");
  return finding.what();
}

std::string BadArgumentsAreRefused() {
  Finding finding;
  const auto pool = NewPool(2);
  finding.Expect(!KvPool::Create(kLayout, 0, "m").ok(), "a pool without blocks");
  finding.Expect(!KvPool::Create({0, 4, KvType::kF32}, 4, "m").ok(), "a pool without attentions");
  finding.Expect(!pool->Open({}, 10, KvUse::kCompute).ok(), "opened without a token");
  finding.Expect(!pool->Open(Count(0, 10), 9, KvUse::kCompute).ok(), "opened with too little capacity");
  finding.Expect(!pool->StartFlight(77, 0, 1, Flight::kOut).ok(), "an unknown sequence took off");
  const SequenceKvId id = pool->Open(Count(0, 10), 10, KvUse::kCompute).value().id;
  finding.Expect(!pool->StartFlight(id, 0, 2, Flight::kOut).ok(), "a block beyond the end took off");
  finding.Expect(!pool->StartFlight(id, 0, 1, Flight::kIn).ok(), "a computing sequence expects pages");
  finding.Expect(pool->Attach(id).code() == Code::kBadState, "a computing sequence was attached");
  pool->Close(id, true);
  pool->Close(id, true);
  pool->Advance(id, Count(0, 10), 10);
  finding.Expect(pool->BlockTable(id).empty(), "a closed sequence has blocks");
  finding.Same("broken", pool->CheckInvariants(), "");
  return finding.what();
}

int PrintStates() {
  std::printf("{");
  for (int from = 0; from < kBlockStates; ++from) {
    std::printf("%s\"%s\":[", from == 0 ? "" : ",", kBlockStateNames[static_cast<size_t>(from)]);
    const char* comma = "";
    for (int to = 0; to < kBlockStates; ++to) {
      if (!MayFollow(static_cast<BlockState>(from), static_cast<BlockState>(to))) continue;
      std::printf("%s\"%s\"", comma, kBlockStateNames[static_cast<size_t>(to)]);
      comma = ",";
    }
    std::printf("]");
  }
  std::printf("}\n");
  return 0;
}

int PrintHashes(const char* model, int count) {
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(i * 2654435761 % 2147483648));
  for (const BlockHash& hash : BlockHashes(model, tokens)) std::printf("%s\n", Hex(hash.data(), hash.size()).c_str());
  return 0;
}

int RunClaims() {
  Claims claims;
  claims.Check("a sequence grows by blocks, its table stays where it is", BlocksOnDemand());
  claims.Check("a full block is shared while its sequence still works", PrefixIsShared());
  claims.Check("one token at least is left to compute", OneTokenIsLeft());
  claims.Check("the next turn goes on from all computed rows", NextTurnGoesOn());
  claims.Check("of a block in which a prompt branches off or ends the shared rows are copied", BranchesWithinABlock());
  claims.Check("a pool too full to copy shares whole blocks", TooFullToCopy());
  claims.Check("a block equal to a cached one stays private", EqualContentStaysPrivate());
  claims.Check("the longest unused goes first, its last block before its first", OldestGoesFirst());
  claims.Check("a pinned block is not evicted", PinnedIsNotEvicted());
  claims.Check("a sequence that is not kept leaves only what was cached before", DroppedWhenNotKept());
  claims.Check("received blocks are attached, grow and end in the cache", ReceivedThenAttached());
  claims.Check("of an incomplete transfer the leading blocks are kept", ArrivedPartIsKept());
  claims.Check("a closed sequence's blocks wait for their flights", HeldUntilFlightsEnd());
  claims.Check("changes are told net and once", ChangesAreNet());
  claims.Check("bad arguments are refused", BadArgumentsAreRefused());
  return claims.ExitCode();
}

}  // namespace
}  // namespace margay

int main(int argc, char** argv) {
  using namespace margay;
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "states") return PrintStates();
  if (what == "hashes" && argc == 4) return PrintHashes(argv[2], std::atoi(argv[3]));
  return RunClaims();
}
