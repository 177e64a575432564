#include "adapters.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime.h"

namespace gangpao {

namespace {

constexpr int kDownRows = 32;  // rows of a piece of A x
constexpr int kUpPanels = 4;   // panels of 16 outputs of a piece of B h
constexpr size_t kShort = 16384;  // products of B h that one thread does in about a microsecond

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

int whole(int x, int m) { return (x + m - 1) / m; }

}  // namespace

LowRank::LowRank(const Linear& layer, const std::vector<LowRankSource>& sources, bool bytes, Arena& arena) {
  require(sources.size() == layer.parts.size(), "LowRank: one pair of matrices (or none) for each matrix of the layer");
  size_t element = bytes ? 1 : 4, b_elements = 0, panels = 0;
  int row = 0, sum = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    int rows = layer.parts[i]->w.rows;
    parts.push_back({sum, sources[i].rank, row, rows, nullptr, nullptr});
    panels += size_t(whole(rows, 16));
    b_elements += size_t(whole(rows, 16)) * 16 * sources[i].rank;
    sum += sources[i].rank, row += rows;
  }
  require(sum > 0, "LowRank: no rank");
  ranks = whole(sum, kRankGroup) * kRankGroup, rows = row;
  int blocks = whole(layer.cols, 16);
  size_t a_elements = size_t(ranks) * blocks * 16;
  nbytes = (a_elements + b_elements) * element;
  Arena::Piece piece = arena.take(nbytes);  // zeros
  pages_ = piece.pages;
  factors_.assign(size_t(ranks) + panels, 1.0f);
  m = {bytes, layer.cols, piece.data, factors_.data()};
  float* factor = factors_.data() + ranks;
  uint8_t* b = piece.data + a_elements * element;
  for (size_t i = 0; i < sources.size(); ++i) {
    LowRankPart& part = parts[i];
    part.b = b, part.factor = factor;
    if (part.rank) std::copy_n(sources[i].panel_factor, whole(part.rows, 16), factor);
    factor += whole(part.rows, 16);
    auto* from_a = static_cast<const uint8_t*>(sources[i].a);
    auto* from_b = static_cast<const uint8_t*>(sources[i].b);
    for (int r = 0; r < part.rank; ++r) {
      int at = part.first_rank + r;
      factors_[size_t(at)] = sources[i].rank_factor[r];
      for (int c = 0; c < layer.cols; c += 16) {
        size_t to = ((size_t(at / kRankGroup) * blocks + c / 16) * kRankGroup + at % kRankGroup) * 16;
        std::memcpy(piece.data + to * element, from_a + (size_t(r) * layer.cols + c) * element,
                    size_t(std::min(16, layer.cols - c)) * element);
      }
    }
    for (int o = 0; o < part.rows; ++o)
      for (int r = 0; r < part.rank; ++r)
        std::memcpy(b + ((size_t(o / 16) * part.rank + r) * 16 + o % 16) * element, from_b + (size_t(o) * part.rank + r) * element, element);
    b += size_t(whole(part.rows, 16)) * 16 * part.rank * element;
  }
}

void LowRankTable::set(int adapter, std::shared_ptr<LowRank> low_rank) {
  require(adapter >= 0, "LowRankTable: an adapter's number is negative");
  if (size_t(adapter) >= by_adapter_.size()) by_adapter_.resize(size_t(adapter) + 1);
  by_adapter_[size_t(adapter)] = std::move(low_rank);
}

const LowRank* LowRankTable::get(int adapter) const {
  return size_t(adapter) < by_adapter_.size() ? by_adapter_[size_t(adapter)].get() : nullptr;
}

void AdapterRuns::add(int adapter, int begin, int end, float scale) {
  require(adapter >= 0 && begin >= 0 && begin < end, "AdapterRuns: no such rows");
  runs.push_back({adapter, begin, end, scale});
}

Additions::Additions(const Linear& w, const Activation& x, const Array& out, const LowRankTable& table, const AdapterRuns& runs,
                     float scale)
    : x_(x) {
  size_t floats = 0;
  int items = 0;
  for (const auto& run : runs.runs) {
    const LowRank* what = table.get(run.adapter);
    if (!what || run.scale == 0) continue;
    require(run.end <= x.n && run.end <= out.rows, "linear: an adapter's rows are not in this step");
    require(what->m.cols == w.cols && what->rows == w.rows, "linear: an adapter of another layer");
    require(x.floats, "linear: the input was not kept in floats, which adapters need");
    int rows = run.end - run.begin;
    uses_.push_back({what, run.begin, rows, run.scale * scale, floats});
    floats += size_t(rows) * what->ranks;
    for (const LowRankPart& part : what->parts) up_products_ += size_t(rows) * part.rank * part.rows;
    down_end_.push_back(items += whole(rows, kDownRows) * (what->ranks / kRankGroup));
  }
  if (uses_.empty()) return;
  items = 0;
  for (const auto& part : w.parts) up_end_.push_back(items += whole(part->w.num_panels(), kUpPanels));
  h_ = Runtime::get().shared(floats);
}

bool Additions::up_is_short() const { return up_products_ <= kShort; }

void Additions::down(int begin, int end) const {
  const Kernels& k = *Runtime::get().kernels;
  for (int i = begin; i < end; ++i) {
    size_t at = size_t(std::upper_bound(down_end_.begin(), down_end_.end(), i) - down_end_.begin());
    const Use& use = uses_[at];
    int item = at ? i - down_end_[at - 1] : i, groups = use.what->ranks / kRankGroup;
    int row = item / groups * kDownRows, rows = std::min(kDownRows, use.rows - row), stride = use.what->ranks;
    k.low_rank_down(use.what->m, item % groups, x_.acts.f + size_t(use.begin + row) * x_.acts.f_stride, int(x_.acts.f_stride), rows,
                    use.scale, h_ + use.h + size_t(row) * stride, stride);
  }
}

void Additions::up(int begin, int end, Array& out) const {
  const Kernels& k = *Runtime::get().kernels;
  for (int i = begin; i < end; ++i) {
    size_t at = size_t(std::upper_bound(up_end_.begin(), up_end_.end(), i) - up_end_.begin());
    int panel = (at ? i - up_end_[at - 1] : i) * kUpPanels;
    for (const Use& use : uses_) {
      const LowRankPart& part = use.what->parts[at];
      if (part.rank == 0) continue;
      int last = std::min(panel + kUpPanels, whole(part.rows, 16));
      k.low_rank_up(use.what->m.bytes, part, panel, last, h_ + use.h + part.first_rank, use.what->ranks, use.rows,
                    out.row(use.begin) + part.first_row, out.stride);
    }
  }
}

}  // namespace gangpao
