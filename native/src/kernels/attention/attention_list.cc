#include "kernels/attention/attention_list.h"

#include <algorithm>

namespace margay {
namespace {

constexpr int64_t kSerial = 192 << 10;  // products below which threads cost more than they bring
constexpr size_t kCacheLine = 16;       // floats
constexpr int kApartBytes = 16 << 20;   // of sums that are kept apart

size_t Whole(size_t floats) { return (floats + kCacheLine - 1) / kCacheLine * kCacheLine; }

int Slots(int latent, int queries) {
  return std::min(kApartBytes / (4 * latent), 64 * queries);
}

float* Aligned(float* p) { return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64); }

}  // namespace

AttentionList::AttentionList(const AttentionKernels* kernels, ThreadPool* pool, const AttentionShape& shape, int max_rows)
    : kernels_(kernels), pool_(pool), shape_(shape), plan_(shape.heads, pool->threads(), max_rows, Slots(shape.latent, max_rows * shape.heads)) {
  const size_t queries = static_cast<size_t>(max_rows) * static_cast<size_t>(shape.heads);
  const auto slots = static_cast<size_t>(Slots(shape.latent, max_rows * shape.heads));
  const size_t part = static_cast<size_t>(kAttentionQueries) * static_cast<size_t>(shape.latent + 2);
  top_.resize(queries);
  sum_.resize(queries);
  apart_out_.resize(slots * static_cast<size_t>(shape.latent));
  apart_top_.resize(slots);
  apart_sum_.resize(slots);
  thread_floats_ = Whole(static_cast<size_t>(AttentionScratch(shape.latent, shape.rope))) + Whole(part);
  memory_.resize(static_cast<size_t>(pool->threads()) * thread_floats_ + kCacheLine);
}

void AttentionList::Run(const float* q, int64_t q_stride, const uint8_t* pages, float* out) {
  q_ = q;
  q_stride_ = q_stride;
  pages_ = pages;
  out_ = out;
  std::fill_n(sum_.begin(), plan_.visible().size(), 0.0F);
  const bool serial = plan_.pairs() * (shape_.width() + shape_.latent) <= kSerial;
  const auto run = [&](size_t count, auto&& body) {
    if (serial) {
      for (size_t i = 0; i < count; ++i) body(static_cast<int>(i), 0);
    } else if (count > 0) {
      pool_->Run(static_cast<int>(count), body);
    }
  };
  for (size_t i = 0; i < plan_.phases(); ++i) {
    const AttentionPlan::Phase phase = plan_.phase(i);
    run(phase.items.size(), [&](int item, int thread) { RunItem(phase.items[static_cast<size_t>(item)], thread); });
    run(phase.merges.size(), [&](int merge, int) { RunMerge(phase.merges[static_cast<size_t>(merge)]); });
  }
}

void AttentionList::RunItem(const AttentionPlan::Item& item, int thread) {
  const AttentionGroup& tile = plan_.tile(item.tile);
  if (tile.slot >= 0) return RunPart(tile, item.first_part, SlotOf(tile, item.first_part), thread);
  const int first = Query(tile, 0);
  const bool together = Query(tile, tile.count - 1) - first == tile.count - 1;
  for (int part = tile.first_part; part < tile.last_part; ++part) {
    if (part == 0 && together) {
      RunPart(tile, part, PlaceOf(first), thread);
      continue;
    }
    float* out = Aligned(memory_.data()) + (static_cast<size_t>(thread) + 1) * thread_floats_ -
                 Whole(static_cast<size_t>(kAttentionQueries) * static_cast<size_t>(shape_.latent + 2));
    float* top = out + kAttentionQueries * shape_.latent;
    const Place place{out, top, top + kAttentionQueries};
    RunPart(tile, part, place, thread);
    MergePart(tile, 0, tile.count, place);
  }
  if (tile.last) Normalise(tile, 0, tile.count);
}

void AttentionList::RunMerge(const AttentionPlan::Merge& merge) {
  const AttentionGroup& tile = plan_.tile(merge.tile);
  for (int part = tile.first_part; part < tile.last_part; ++part) MergePart(tile, merge.first, merge.count, SlotOf(tile, part));
  if (tile.last) Normalise(tile, merge.first, merge.count);
}

void AttentionList::RunPart(const AttentionGroup& tile, int part, const Place& to, int thread) {
  const AttentionTile work = {.q = q_,
                              .q_stride = q_stride_,
                              .queries = &plan_.order()[static_cast<size_t>(tile.order)],
                              .count = tile.count,
                              .visible = plan_.visible().data(),
                              .pages = pages_,
                              .page_bytes = int64_t{kTileTokens} * shape_.width() * 2,
                              .block_table = tile.block_table,
                              .latent = shape_.latent,
                              .rope = shape_.rope,
                              .first = PartFirst(part),
                              .end = std::min(tile.end, PartFirst(part + 1)),
                              .out = to.out,
                              .out_stride = shape_.latent,
                              .top = to.top,
                              .sum = to.sum,
                              .scratch = Aligned(memory_.data()) + static_cast<size_t>(thread) * thread_floats_};
  kernels_->attend(&work);
}

void AttentionList::MergePart(const AttentionGroup& tile, int first, int count, const Place& part) {
  for (int i = first; i < first + count; ++i) {
    const Place to = PlaceOf(Query(tile, i));
    const AttentionSum into{to.out, to.top, to.sum};
    const AttentionSum from{part.out + i * shape_.latent, part.top + i, part.sum + i};
    kernels_->merge(&into, &from, shape_.latent);
  }
}

void AttentionList::Normalise(const AttentionGroup& tile, int first, int count) {
  for (int i = first; i < first + count; ++i) {
    const Place place = PlaceOf(Query(tile, i));
    const AttentionSum of{place.out, place.top, place.sum};
    kernels_->normalise(&of, shape_.latent);
  }
}

AttentionList::Place AttentionList::PlaceOf(int query) {
  const auto i = static_cast<size_t>(query);
  return {out_ + i * static_cast<size_t>(shape_.latent), &top_[i], &sum_[i]};
}

AttentionList::Place AttentionList::SlotOf(const AttentionGroup& tile, int part) {
  const auto i = static_cast<size_t>(tile.slot + (part - tile.first_part) * tile.count);
  return {&apart_out_[i * static_cast<size_t>(shape_.latent)], &apart_top_[i], &apart_sum_[i]};
}

}  // namespace margay
