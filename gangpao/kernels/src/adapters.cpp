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

// Numbers of B for 16 outputs; of int8, ranks come in pairs.
size_t panel_elements(int rank, bool bytes) { return size_t(bytes ? whole(rank, 2) * 2 : rank) * 16; }

}  // namespace

LowRank::LowRank(const Linear& layer, const std::vector<LowRankSource>& sources, bool bytes, Arena& arena) {
  require(sources.size() == layer.parts.size(), "LowRank: one pair of matrices (or none) for each matrix of the layer");
  size_t element = bytes ? 1 : 4, b_elements = 0, panels = 0;
  int row = 0, sum = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    int rows = layer.parts[i]->w.rows;
    parts.push_back({sum, sources[i].rank, row, rows, nullptr, nullptr});
    panels += size_t(whole(rows, 16));
    b_elements += size_t(whole(rows, 16)) * panel_elements(sources[i].rank, bytes);
    sum += sources[i].rank, row += rows;
  }
  require(sum > 0, "LowRank: no rank");
  ranks = whole(sum, kRankGroup) * kRankGroup, rows = row;
  int wide = bytes ? 32 : 16, blocks = whole(layer.cols, wide);  // columns that lie together
  size_t a_elements = size_t(ranks) * blocks * wide;
  a_bytes = a_elements * element, nbytes = a_bytes + b_elements * element;
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
      for (int c = 0; c < layer.cols; c += wide) {
        size_t to = ((size_t(at / kRankGroup) * blocks + c / wide) * kRankGroup + at % kRankGroup) * wide;
        std::memcpy(piece.data + to * element, from_a + (size_t(r) * layer.cols + c) * element,
                    size_t(std::min(wide, layer.cols - c)) * element);
      }
    }
    size_t panel = panel_elements(part.rank, bytes);
    for (int o = 0; o < part.rows; ++o)
      for (int r = 0; r < part.rank; ++r) {
        int in_panel = bytes ? (r / 2 * 16 + o % 16) * 2 + r % 2 : r * 16 + o % 16;
        std::memcpy(b + (o / 16 * panel + size_t(in_panel)) * element, from_b + (size_t(o) * part.rank + r) * element, element);
      }
    b += size_t(whole(part.rows, 16)) * panel * element;
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
  for (const auto& run : runs.runs)  // all at once: what describes an adapter is rarely in the cache
    if (const LowRank* what = table.get(run.adapter)) __builtin_prefetch(what), __builtin_prefetch(&what->nbytes);
  for (const auto& run : runs.runs)
    if (const LowRank* what = table.get(run.adapter)) __builtin_prefetch(what->parts.data()), __builtin_prefetch(what->m.factor);
  uses_.reserve(runs.runs.size()), down_end_.reserve(runs.runs.size());
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
  h_ = Runtime::get().shared(floats + 16);  // the last ranks are read in sixteens
}

bool Additions::up_is_short() const { return up_products_ <= kShort; }

// Several adapters are read in many short runs, each waiting for memory at its begin (Zen 5, eight adapters on smollm2-135m: 18 GB/s
// of 46). The layer's own products for several rows leave memory idle, so A and B come meanwhile, a share with each panel: A x takes
// half of the time, B h six tenths, the products a tenth more.
void Additions::ask(int begin, int end, int panels) const {
  auto share = [&](const uint8_t* data, size_t size) {
    const uint8_t *p = data + size * size_t(begin) / size_t(panels), *last = data + size * size_t(end) / size_t(panels);
    for (; p < last; p += 64) __builtin_prefetch(p, 0, 2);
  };
  for (const Use& use : uses_) {
    share(use.what->m.a, use.what->a_bytes);
    share(use.what->m.a + use.what->a_bytes, use.what->nbytes - use.what->a_bytes);
  }
}

void Additions::down(int begin, int end, int thread) const {
  const Kernels& k = *Runtime::get().kernels;
  uint8_t* scratch = Runtime::get().scratch(thread, low_rank_scratch(x_.cols));
  for (int i = begin, last; i < end; i = last) {
    size_t at = size_t(std::upper_bound(down_end_.begin(), down_end_.end(), i) - down_end_.begin());
    const Use& use = uses_[at];
    int item = at ? i - down_end_[at - 1] : i, groups = use.what->ranks / kRankGroup, group = item % groups;
    last = std::min(end, i + groups - group);
    int row = item / groups * kDownRows, rows = std::min(kDownRows, use.rows - row), stride = use.what->ranks;
    k.low_rank_down(use.what->m, group, group + last - i, x_.acts.f + size_t(use.begin + row) * x_.acts.f_stride, int(x_.acts.f_stride),
                    rows, use.scale, h_ + use.h + size_t(row) * stride, stride, scratch);
  }
}

// One adapter after the other over all panels that are this thread's in a matrix: B is then read in runs as long as they can be.
void Additions::up(int begin, int end, int thread, Array& out) const {
  const Kernels& k = *Runtime::get().kernels;
  for (int i = begin, last; i < end; i = last) {
    size_t at = size_t(std::upper_bound(up_end_.begin(), up_end_.end(), i) - up_end_.begin());
    int before = at ? up_end_[at - 1] : 0;
    last = std::min(end, up_end_[at]);
    for (const Use& use : uses_) {
      const LowRankPart& part = use.what->parts[at];
      if (part.rank == 0) continue;
      uint8_t* scratch = Runtime::get().scratch(thread, low_rank_scratch(part.rank));
      int panels = std::min((last - before) * kUpPanels, whole(part.rows, 16));
      k.low_rank_up(use.what->m.bytes, part, (i - before) * kUpPanels, panels, h_ + use.h + part.first_rank, use.what->ranks, use.rows,
                    out.row(use.begin) + part.first_row, out.stride, scratch);
    }
  }
}

}  // namespace gangpao
