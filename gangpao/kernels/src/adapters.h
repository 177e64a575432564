// Adapters at work: what each adds to a linear layer, and which rows of a step use which.
#pragma once
#include <memory>
#include <vector>

#include "isa.h"
#include "memory.h"

namespace gangpao {

class Activation;
class Array;
class Linear;

// A and B of one adapter for one matrix of a layer, as its caller holds them: A [rank, cols], B [rows, rank], row by row in int8
// or F32. rank 0: nothing is added to that matrix. What is added is panel_factor (B (rank_factor (A x))), a panel being 16 rows.
struct LowRankSource {
  const void *a, *b;
  const float *rank_factor, *panel_factor;
  int rank;
};

// What one adapter adds to one linear layer, packed.
class LowRank {
 public:
  LowRank(const Linear& layer, const std::vector<LowRankSource>& sources, bool bytes, Arena& arena);
  LowRankMatrices m{};
  std::vector<LowRankPart> parts;  // one for each matrix of the layer
  int ranks = 0, rows = 0;         // ranks in whole groups
  size_t nbytes = 0, a_bytes = 0;  // of A and B, of A, which is first

 private:
  SharedPages pages_;
  std::vector<float> factors_;
};

// What the adapters add to one linear layer, by the number of the adapter; null where one adds nothing.
class LowRankTable {
 public:
  void set(int adapter, std::shared_ptr<LowRank> low_rank);
  const LowRank* get(int adapter) const;

 private:
  std::vector<std::shared_ptr<LowRank>> by_adapter_;
};

// Rows [begin, end) of a step use an adapter with a scale. A row may stand in several runs; they are added in order.
class AdapterRuns {
 public:
  struct Run {
    int adapter, begin, end;
    float scale;
  };
  void clear() { runs.clear(); }
  void add(int adapter, int begin, int end, float scale);
  std::vector<Run> runs;
};

// The two halves of the work that runs over one linear layer cause: A x beside the layer's own panels, for both read the same
// input; then B (A x) on top of its output.
class Additions {
 public:
  Additions(const Linear& w, const Activation& x, const Array& out, const LowRankTable& table, const AdapterRuns& runs, float scale);
  int down_items() const { return down_end_.empty() ? 0 : down_end_.back(); }
  bool up_is_short() const;  // B h takes about as long as waking another thread
  void ask(int begin, int end, int panels) const;  // for the share [begin, end) of `panels` of all A and B, from memory
  void down(int begin, int end, int thread) const;
  int up_items() const { return up_end_.empty() ? 0 : up_end_.back(); }
  void up(int begin, int end, int thread, Array& out) const;

 private:
  struct Use {
    const LowRank* what;
    int begin, rows;
    float scale;
    size_t h;
  };
  const Activation& x_;
  std::vector<Use> uses_;
  std::vector<int> down_end_, up_end_;  // items up to the end of each use, of each part
  size_t up_products_ = 0;
  float* h_ = nullptr;
};

}  // namespace gangpao
