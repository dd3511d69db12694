#include "kernels/linear/matmul_list.h"

#include <algorithm>

namespace margay {
namespace {

constexpr int64_t kSerial = 192 << 10;  // products below which threads cost more than they bring
constexpr int64_t kTile = 32 << 10;
constexpr int kWidePanels = 4;
constexpr int kBandRows = 12;  // smallest worthwhile band of rows
constexpr int kFusedRows = 48;
constexpr int kFusedPanels = 8;
constexpr size_t kFusedBlock = size_t{kFusedRows} * kFusedPanels * kPanel;

int Panels(const MatmulWeights& w) { return (w.out + kPanel - 1) / kPanel; }

int64_t Products(const MatmulJob& job) { return int64_t{job.rows} * job.w.in * job.w.out * (job.up != nullptr ? 2 : 1); }

void AddBias(const float* bias, int outputs, int rows, float* y, int64_t y_stride) {
  for (int row = 0; row < rows; ++row) {
    for (int o = 0; o < outputs; ++o) y[row * y_stride + o] += bias[o];
  }
}

MatmulTile TileOf(const MatmulJob& job, const MatmulWeights& w, int first_row, int rows, int panel, int panels) {
  return {.x = job.x + (job.x_rows == nullptr ? first_row * job.x_stride : 0),
          .x_stride = job.x_stride,
          .x_rows = job.x_rows == nullptr ? nullptr : job.x_rows + first_row,
          .rows = rows,
          .w = reinterpret_cast<const uint8_t*>(w.weight),
          .scales = w.scales,
          .format = w.format,
          .in = w.in,
          .first_panel = panel,
          .panels = panels,
          .outputs = std::min(w.out - panel * kPanel, panels * kPanel),
          .y = nullptr,
          .y_stride = 0};
}

}  // namespace

MatmulList::MatmulList(const LinearKernels* linear, const PointwiseKernels* pointwise, ThreadPool* pool, int most_jobs)
    : linear_(linear), pointwise_(pointwise), pool_(pool), scratch_(static_cast<size_t>(pool->threads()) * 2 * kFusedBlock) {
  cuts_.reserve(static_cast<size_t>(most_jobs) + 1);
}

void MatmulList::Run(std::span<const MatmulJob> jobs) {
  int64_t all = 0;
  for (const MatmulJob& job : jobs) all += Products(job);
  const int64_t wanted = std::max(kTile, all / (int64_t{4} * pool_->threads()));
  cuts_.clear();
  int items = 0;
  for (const MatmulJob& job : jobs) {
    const int panels = Panels(job.w);
    const int64_t per_panel = std::max<int64_t>(1, Products(job) / panels);
    Cut cut{items, static_cast<int>(std::clamp<int64_t>(wanted / per_panel, 1, panels)), job.rows, 1};
    if (cut.panels < kWidePanels && job.rows >= 2 * kBandRows) {
      cut.panels = std::min(kWidePanels, panels);
      const int64_t per_row = std::max<int64_t>(1, per_panel * cut.panels / job.rows);
      cut.rows = static_cast<int>(std::clamp<int64_t>(wanted / per_row / kBandRows * kBandRows, kBandRows, job.rows));
      cut.bands = (job.rows + cut.rows - 1) / cut.rows;
    }
    if (job.up != nullptr) cut.panels = std::min(cut.panels, kFusedPanels);
    items += (panels + cut.panels - 1) / cut.panels * cut.bands;
    cuts_.push_back(cut);
  }
  const auto body = [&](int item, int thread) {
    const auto after = std::upper_bound(cuts_.begin(), cuts_.end(), item, [](int i, const Cut& cut) { return i < cut.first_item; });
    const auto index = static_cast<size_t>(after - cuts_.begin()) - 1;
    RunTile(jobs[index], cuts_[index], item - cuts_[index].first_item, thread);
  };
  if (all <= kSerial) {
    for (int item = 0; item < items; ++item) body(item, 0);
  } else {
    pool_->Run(items, body);
  }
}

void MatmulList::RunTile(const MatmulJob& job, const Cut& cut, int tile, int thread) {
  const int panel = tile / cut.bands * cut.panels;
  const int panels = std::min(cut.panels, Panels(job.w) - panel);
  const int first = tile % cut.bands * cut.rows;
  const int end = std::min(job.rows, first + cut.rows);
  float* y = job.y + panel * kPanel;
  if (job.up == nullptr) {
    MatmulTile t = TileOf(job, job.w, first, end - first, panel, panels);
    t.y = y + first * job.y_stride;
    t.y_stride = job.y_stride;
    linear_->matmul(&t);
    if (job.w.bias != nullptr) AddBias(job.w.bias + panel * kPanel, t.outputs, t.rows, t.y, t.y_stride);
    return;
  }
  float* gate = &scratch_[static_cast<size_t>(thread) * 2 * kFusedBlock];
  float* up = gate + kFusedBlock;
  for (int row = first; row < end; row += kFusedRows) {
    MatmulTile t = TileOf(job, job.w, row, std::min(kFusedRows, end - row), panel, panels);
    t.y = gate;
    t.y_stride = panels * kPanel;
    linear_->matmul(&t);
    t = TileOf(job, *job.up, row, t.rows, panel, panels);
    t.y = up;
    t.y_stride = panels * kPanel;
    linear_->matmul(&t);
    for (int r = 0; r < t.rows; ++r) {
      pointwise_->silu_mul(gate + r * t.y_stride, up + r * t.y_stride, t.outputs, y + (row + r) * job.y_stride);
    }
  }
}

}  // namespace margay
