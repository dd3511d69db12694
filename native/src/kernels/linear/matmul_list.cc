#include "kernels/linear/matmul_list.h"

#include <sys/mman.h>

#include <algorithm>

#include "kernels/linear/panel_layout.h"

namespace margay {
namespace {

constexpr int64_t kSerial = 192 << 10;      // products below which threads cost more than they bring
constexpr int64_t kSerialPack = 32 << 10;   // values, likewise
constexpr int64_t kLeastItem = 32 << 10;    // products of an item of work
constexpr int kItemsPerThread = 12;         // for balance
constexpr size_t kCachedWeights = 640 << 10;  // weights of an item that several strips find in the second cache
constexpr size_t kPackedBytes = size_t{24} << 20;
constexpr size_t kLargePage = size_t{2} << 20;
constexpr int kFusedPanels = 24;             // of one strip: a multiple of what any kernel runs together
constexpr int kLeastFusedPanels = 3;         // of many strips: what fills the registers
constexpr size_t kFusedBlock = size_t{kMostStripRows} * kPanel * std::max(kFusedPanels, kStripsTogether * kLeastFusedPanels);

int Panels(const MatmulWeights& w) { return (w.out + kPanel - 1) / kPanel; }

void AddBias(const float* bias, int outputs, int rows, float* y, int64_t y_stride) {
  for (int row = 0; row < rows; ++row) {
    for (int o = 0; o < outputs; ++o) y[row * y_stride + o] += bias[o];
  }
}

LinearStrip StripTimes(const MatmulWeights& w, const void* packed, int rows, int panel, int panels) {
  return {.x = packed,
          .rows = rows,
          .in = w.in,
          .w = reinterpret_cast<const uint8_t*>(w.weight) + static_cast<size_t>(panel) * PanelBytes(w.format, w.in),
          .panel_bytes = static_cast<int64_t>(PanelBytes(w.format, w.in)),
          .scales = w.scales,
          .first_panel = panel,
          .panels = panels,
          .outputs = std::min(w.out - panel * kPanel, panels * kPanel),
          .y = nullptr,
          .y_stride = 0};
}

void MultiplyAll(const LinearKernel& kernel, const LinearStrip* strips, int count) {
  count == 1 ? kernel.multiply(strips) : kernel.multiply_together(strips, count);
}

}  // namespace

MatmulList::MatmulList(const LinearKernels* linear, const PointwiseKernels* pointwise, ThreadPool* pool, int most_jobs)
    : linear_(linear),
      pointwise_(pointwise),
      pool_(pool),
      memory_(new std::byte[kPackedBytes + kLargePage]),
      packed_(memory_.get() + (kLargePage - reinterpret_cast<uintptr_t>(memory_.get()) % kLargePage) % kLargePage),
      scratch_(static_cast<size_t>(pool->threads()) * 2 * kFusedBlock) {
  parts_.reserve(static_cast<size_t>(most_jobs) + 1);
  // Best effort: every panel of weights reads all activations, hundreds of small pages.
  madvise(packed_, kPackedBytes, MADV_HUGEPAGE);
}

void MatmulList::Run(std::span<const MatmulJob> jobs) {
  size_t job = 0;
  int row = 0;
  while (job < jobs.size()) {
    Gather(jobs, &job, &row);
    Pack();
    Cut();
    Multiply();
  }
}

void MatmulList::Gather(std::span<const MatmulJob> jobs, size_t* job, int* row) {
  parts_.clear();
  packs_ = 0;
  products_ = 0;
  packed_bytes_ = 0;
  while (*job < jobs.size() && parts_.size() < parts_.capacity()) {
    const MatmulJob& from = jobs[*job];
    const int strip_rows = StripRows(from);
    const size_t strip_bytes = StripBytes(from);
    const auto fit = static_cast<int64_t>((kPackedBytes - packed_bytes_) / strip_bytes) * strip_rows;
    const int rows = static_cast<int>(std::min<int64_t>(from.rows - *row, fit));
    if (rows > 0) {
      Part part{&from, *row, rows, (rows + strip_rows - 1) / strip_rows, packed_bytes_, true, packs_, 0, 0, 1};
      part.own = parts_.empty() || !SharesActivations(parts_.back(), part);
      if (part.own) {
        packed_bytes_ += static_cast<size_t>(part.strips) * strip_bytes;
        packs_ += part.strips;
      } else {
        part.packed = parts_.back().packed;
      }
      products_ += int64_t{rows} * from.w.in * from.w.out * (from.up != nullptr ? 2 : 1);
      parts_.push_back(part);
      *row += rows;
    }
    if (*row < from.rows) return;
    ++*job;
    *row = 0;
  }
}

bool MatmulList::SharesActivations(const Part& before, const Part& part) const {
  const MatmulJob& a = *before.job;
  const MatmulJob& b = *part.job;
  return a.x == b.x && a.x_stride == b.x_stride && a.x_rows == b.x_rows && a.w.in == b.w.in && before.first_row == part.first_row &&
         before.rows == part.rows && StripRows(a) == StripRows(b) && KernelOf(a.w).pack == KernelOf(b.w).pack && !PacksTwice(a) && !PacksTwice(b);
}

int MatmulList::StripRows(const MatmulJob& job) const {
  const auto least = [&](int LinearKernel::* rows) {
    return job.up == nullptr ? KernelOf(job.w).*rows : std::min(KernelOf(job.w).*rows, KernelOf(*job.up).*rows);
  };
  const int lone = least(&LinearKernel::lone_rows);
  return job.rows <= lone ? lone : least(&LinearKernel::strip_rows);
}

int MatmulList::StripsTogether(const MatmulJob& job) const {
  const auto gains = [&](const MatmulWeights& w) { return KernelOf(w).multiply_together != nullptr; };
  return gains(job.w) && (job.up == nullptr || gains(*job.up)) ? kStripsTogether : 1;
}

size_t MatmulList::PackedBytes(const MatmulWeights& w, int rows) const {
  return static_cast<size_t>(KernelOf(w).packed_bytes(rows, w.in) + 63) / 64 * 64;
}

size_t MatmulList::StripBytes(const MatmulJob& job) const {
  const int rows = StripRows(job);
  return PackedBytes(job.w, rows) + (PacksTwice(job) ? PackedBytes(*job.up, rows) : 0);
}

MatmulList::Strip MatmulList::StripOf(const Part& part, int index) const {
  const MatmulJob& job = *part.job;
  const auto border = [&](int i) { return part.first_row + static_cast<int>(int64_t{i} * part.rows / part.strips); };
  std::byte* packed = packed_ + part.packed + static_cast<size_t>(index) * StripBytes(job);
  return {border(index), border(index + 1) - border(index), packed, PacksTwice(job) ? packed + PackedBytes(job.w, StripRows(job)) : packed};
}

void MatmulList::Pack() {
  int64_t values = 0;
  for (const Part& part : parts_) values += part.own ? int64_t{part.rows} * part.job->w.in : 0;
  const auto body = [&](int item, int) {
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), item, [](int i, const Part& part) { return i < part.first_pack; });
    const Part& part = *(after - 1);
    const MatmulJob& job = *part.job;
    const Strip strip = StripOf(part, item - part.first_pack);
    LinearRows rows = {.x = job.x + (job.x_rows == nullptr ? strip.first_row * job.x_stride : 0),
                             .x_stride = job.x_stride,
                             .x_rows = job.x_rows == nullptr ? nullptr : job.x_rows + strip.first_row,
                             .rows = strip.rows,
                             .in = job.w.in,
                             .packed = strip.packed};
    KernelOf(job.w).pack(&rows);
    if (strip.packed_up == strip.packed) return;
    rows.packed = strip.packed_up;
    KernelOf(*job.up).pack(&rows);
  };
  if (values <= kSerialPack) {
    for (int item = 0; item < packs_; ++item) body(item, 0);
  } else {
    pool_->Run(packs_, body);
  }
}

void MatmulList::Cut() {
  const int64_t wanted = std::max(kLeastItem, products_ / (int64_t{kItemsPerThread} * pool_->threads()));
  items_ = 0;
  for (Part& part : parts_) {
    const MatmulJob& job = *part.job;
    const int panels = Panels(job.w);
    const int factor = job.up != nullptr ? 2 : 1;
    const int64_t per_panel = std::max<int64_t>(1, int64_t{part.rows} * job.w.in * kPanel * factor);
    part.panels = static_cast<int>(std::clamp<int64_t>((wanted + per_panel / 2) / per_panel, 1, panels));
    if (part.strips > 1) {
      const auto cached = static_cast<int>(kCachedWeights / (PanelBytes(job.w.format, job.w.in) * static_cast<size_t>(factor)));
      part.panels = std::min(part.panels, std::max(1, cached));
    }
    const int together = KernelOf(job.w).panels((part.rows + part.strips - 1) / part.strips);
    part.panels = std::min(panels, (part.panels + together - 1) / together * together);
    const int ranges = (panels + part.panels - 1) / part.panels;
    const auto bands = static_cast<int>(std::max<int64_t>(1, per_panel * part.panels / (2 * wanted)));
    part.bands = std::min(part.strips, bands);
    part.first_item = items_;
    items_ += ranges * part.bands;
  }
}

void MatmulList::Multiply() {
  const auto body = [&](int item, int thread) {
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), item, [](int i, const Part& part) { return i < part.first_item; });
    const Part& part = *(after - 1);
    RunItem(part, item - part.first_item, thread);
  };
  if (products_ <= kSerial) {
    for (int item = 0; item < items_; ++item) body(item, 0);
  } else {
    pool_->Run(items_, body);
  }
}

void MatmulList::RunItem(const Part& part, int item, int thread) {
  const MatmulJob& job = *part.job;
  const int panel = item / part.bands * part.panels;
  const int panels = std::min(part.panels, Panels(job.w) - panel);
  const int band = item % part.bands;
  const int end = (band + 1) * part.strips / part.bands;
  const int most = StripsTogether(job);
  for (int i = band * part.strips / part.bands; i < end; i += most) {
    const int strips = std::min(most, end - i);
    if (job.up != nullptr) {
      RunFused(part, i, strips, panel, panels, thread);
      continue;
    }
    LinearStrip products[kStripsTogether];
    for (int s = 0; s < strips; ++s) {
      const Strip strip = StripOf(part, i + s);
      products[s] = StripTimes(job.w, strip.packed, strip.rows, panel, panels);
      products[s].y = job.y + strip.first_row * job.y_stride + panel * kPanel;
      products[s].y_stride = job.y_stride;
    }
    MultiplyAll(KernelOf(job.w), products, strips);
    if (job.w.bias == nullptr) continue;
    for (int s = 0; s < strips; ++s) AddBias(job.w.bias + panel * kPanel, products[s].outputs, products[s].rows, products[s].y, job.y_stride);
  }
}

void MatmulList::RunFused(const Part& part, int first_strip, int strips, int panel, int panels, int thread) {
  const MatmulJob& job = *part.job;
  const int at_once = std::max(kLeastFusedPanels, kFusedPanels / strips / kLeastFusedPanels * kLeastFusedPanels);
  float* gate = &scratch_[static_cast<size_t>(thread) * 2 * kFusedBlock];
  float* up = gate + kFusedBlock;
  for (int first = panel; first < panel + panels; first += at_once) {
    const int some = std::min(at_once, panel + panels - first);
    LinearStrip gates[kStripsTogether];
    LinearStrip ups[kStripsTogether];
    for (int s = 0; s < strips; ++s) {
      const Strip strip = StripOf(part, first_strip + s);
      gates[s] = StripTimes(job.w, strip.packed, strip.rows, first, some);
      ups[s] = StripTimes(*job.up, strip.packed_up, strip.rows, first, some);
      gates[s].y_stride = ups[s].y_stride = some * kPanel;
      gates[s].y = gate + s * kMostStripRows * gates[s].y_stride;
      ups[s].y = up + s * kMostStripRows * ups[s].y_stride;
    }
    MultiplyAll(KernelOf(job.w), gates, strips);
    MultiplyAll(KernelOf(*job.up), ups, strips);
    for (int s = 0; s < strips; ++s) {
      const int first_row = StripOf(part, first_strip + s).first_row;
      for (int r = 0; r < gates[s].rows; ++r) {
        pointwise_->silu_mul(gates[s].y + r * gates[s].y_stride, ups[s].y + r * ups[s].y_stride, gates[s].outputs,
                             job.y + (first_row + r) * job.y_stride + first * kPanel);
      }
    }
  }
}

}  // namespace margay
