#include "kernels/attention/expanded_list.h"

#include <algorithm>

#include "kernels/code_path.h"
#include "kernels/linear/panel_layout.h"

namespace margay {
namespace {

constexpr int64_t kSerial = 192 << 10;  // products below which threads cost more than they bring
constexpr int kLanes = 16;              // rows are filled up to whole vectors

size_t Whole(int64_t floats) { return static_cast<size_t>((floats + 15) / 16 * 16); }

int StripRows(const LinearKernels& linear) {
  int most = 0;
  for (const LinearKernel& kernel : linear.formats) most = std::max(most, kernel.strip_rows);
  return most;
}

int64_t StripBytes(const LinearKernels& linear, int in) {
  int64_t most = 0;
  for (const LinearKernel& kernel : linear.formats) most = std::max(most, kernel.packed_bytes(StripRows(linear), in));
  return most;
}

// Of one head.
int64_t Products(const ExpandedShape& shape, const AttentionRows& rows) {
  const int64_t bands = (rows.count + kExpandedRows - 1) / kExpandedRows;
  const int64_t lanes = (rows.count + kLanes - 1) / kLanes * kLanes;
  return lanes * (rows.position + 1 + rows.end()) / 2 * (shape.qk_head() + shape.v_head) +
         bands * rows.end() * shape.latent * shape.expanded();
}

}  // namespace

bool ExpandingPays(const ExpandedShape& shape, const AttentionRows& rows) {
  const int64_t pairs = int64_t{rows.count} * (rows.position + 1 + rows.end()) / 2;
  const int64_t absorbed = pairs * (2 * shape.latent + shape.rope) + int64_t{rows.count} * shape.latent * shape.expanded();
  return Products(shape, rows) < absorbed;
}

ExpandedList::ExpandedList(const CodePath& path, ThreadPool* pool, const ExpandedShape& shape, int max_rows)
    : linear_(path.linear),
      attention_(path.attention),
      pointwise_(path.pointwise),
      pool_(pool),
      shape_(shape),
      kv_stride_(ExpandedStride(shape.nope, shape.rope, shape.v_head)) {
  bands_.reserve(static_cast<size_t>(max_rows));
  strip_floats_ = Whole((StripBytes(*linear_, shape.latent) + 3) / 4);
  thread_floats_ = Whole(int64_t{kExpandedTokens} * shape.latent) + Whole((kExpandedTokens + 16) * kv_stride_) +
                   Whole(ExpandedScratch(shape.nope, shape.rope)) + strip_floats_;
  memory_.resize(static_cast<size_t>(pool->threads()) * thread_floats_ + 16);
}

void ExpandedList::Cut(std::span<const AttentionRows> sequences) {
  bands_.clear();
  products_ = 0;
  for (const AttentionRows& sequence : sequences) {
    const int bands = (sequence.count + kExpandedRows - 1) / kExpandedRows;
    products_ += Products(shape_, sequence) * shape_.heads;
    for (int i = 0; i < bands; ++i) {
      const auto border = [&](int b) { return static_cast<int>(int64_t{sequence.count} * b / bands); };
      bands_.push_back({sequence.first_row + border(i), border(i + 1) - border(i), sequence.position + border(i), sequence.block_table});
    }
  }
}

void ExpandedList::Run(const float* q, const uint8_t* pages, std::span<const MatmulWeights> expand, float* out) {
  if (empty()) return;
  q_ = q;
  pages_ = pages;
  expand_ = expand;
  out_ = out;
  const auto body = [&](int item, int thread) {
    RunHead(bands_[static_cast<size_t>(item / shape_.heads)], item % shape_.heads, MemoryOf(thread));
  };
  const int items = static_cast<int>(bands_.size()) * shape_.heads;
  if (products_ > kSerial) return pool_->Run(items, body);
  for (int item = 0; item < items; ++item) body(item, 0);
}

ExpandedList::Memory ExpandedList::MemoryOf(int thread) {
  float* base = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64 / 4;
  Memory memory{};
  memory.latent = base + static_cast<size_t>(thread) * thread_floats_;
  memory.kv = memory.latent + Whole(int64_t{kExpandedTokens} * shape_.latent);
  memory.scratch = memory.kv + Whole((kExpandedTokens + 16) * kv_stride_);
  memory.strip = memory.scratch + Whole(ExpandedScratch(shape_.nope, shape_.rope));
  return memory;
}

void ExpandedList::RunHead(const AttentionRows& band, int head, const Memory& memory) {
  const auto row = static_cast<int64_t>(band.first_row);
  ExpandedTile tile = {.q = q_ + (row * shape_.heads + head) * shape_.qk_head(),
                       .q_stride = int64_t{shape_.heads} * shape_.qk_head(),
                       .rows = band.count,
                       .position = band.position,
                       .kv = memory.kv,
                       .kv_stride = kv_stride_,
                       .nope = shape_.nope,
                       .rope = shape_.rope,
                       .v_head = shape_.v_head,
                       .first = 0,
                       .end = 0,
                       .last = false,
                       .out = out_ + (row * shape_.heads + head) * shape_.v_head,
                       .out_stride = int64_t{shape_.heads} * shape_.v_head,
                       .scratch = memory.scratch};
  for (; tile.first < band.end(); tile.first = tile.end) {
    tile.end = std::min(band.end(), tile.first + kExpandedTokens);
    tile.last = tile.end == band.end();
    Expand(band.block_table, tile.first, tile.end, expand_[static_cast<size_t>(head)], memory);
    attention_->attend_expanded(&tile);
  }
}

// Fills memory.kv with the head's keys and values of the tokens [first, end).
void ExpandedList::Expand(const int32_t* block_table, int first, int end, const MatmulWeights& w, const Memory& memory) const {
  const int width = shape_.latent + shape_.rope;
  for (int token = first; token < end; ++token) {
    const int64_t at = int64_t{block_table[token / kTileTokens]} * kTileTokens + token % kTileTokens;
    const auto* row = reinterpret_cast<const uint16_t*>(pages_) + at * width;
    pointwise_->from_bf16(row, shape_.latent, memory.latent + static_cast<int64_t>(token - first) * shape_.latent);
    pointwise_->from_bf16(row + shape_.latent, shape_.rope, memory.kv + (token - first) * kv_stride_);
  }
  const LinearKernel& kernel = linear_->formats[static_cast<size_t>(w.format)];
  for (int token = 0; token < end - first; token += kernel.strip_rows) {
    const int rows = std::min(kernel.strip_rows, end - first - token);
    const LinearRows pack{memory.latent + int64_t{token} * shape_.latent, shape_.latent, nullptr, rows, shape_.latent, memory.strip};
    kernel.pack(&pack);
    const LinearStrip strip{.x = memory.strip,
                            .rows = rows,
                            .in = w.in,
                            .w = reinterpret_cast<const uint8_t*>(w.weight),
                            .panel_bytes = static_cast<int64_t>(PanelBytes(w.format, w.in)),
                            .scales = w.scales,
                            .first_panel = 0,
                            .panels = (w.out + kPanel - 1) / kPanel,
                            .outputs = w.out,
                            .y = memory.kv + token * kv_stride_ + shape_.rope,
                            .y_stride = kv_stride_};
    kernel.multiply(&strip);
  }
}

}  // namespace margay
