// The largest products of a matrix with very many rows (a head) without reading all of it.
//
// The matrix is in two planes (panel.h). Every row is computed from its upper bits. What the lower ones can add is bounded by the
// length of their vector times that of the activations (Cauchy and Schwarz), and of the activations only what lies outside of some
// learned directions counts, along which the lower bits' products were computed before. Rows that may be among the largest by
// that are then computed from all bits: the same numbers as from `linear`, and no other row can be as large. Nothing is estimated;
// directions decide about the time alone.
#pragma once
#include <memory>
#include <tuple>
#include <vector>

#include "runtime.h"

namespace gangpao {

class Candidates {
 public:
  static constexpr int kDirections = 8;
  explicit Candidates(std::shared_ptr<Linear> head);
  // What a row of activations is asked for: how many of the largest rows, among those that are not known; and the known ones.
  using Wanted = std::tuple<int, const int32_t*, size_t>;
  // Products of x in `out`: right where a row may be wanted, -inf elsewhere. Returns the panels that took all bits; `panels` where all.
  int find(const Activation& x, Array& out, const std::vector<Wanted>& wanted);
  // The rows of x (at most kDirections) become the directions; none that depend on one another.
  void learn(const Activation& x);
  int panels() const { return matrix().num_panels(); }
  // What a search reads of the matrix that takes all bits of so many panels.
  size_t bytes_of(int some) const { return matrix().panel_stride * size_t(panels()) + matrix().rest_stride * size_t(some); }
  // Whether bounds are numbers at all; if not (a damaged file), find computes everything.
  bool sound() const { return sound_; }

 private:
  struct Reach {
    float outside, error;  // length of the activations outside of the directions; what rounding may have done
    std::vector<float> along;
  };
  const Packed& matrix() const { return head_->parts[0]->w; }
  Packed upper() const;
  std::vector<float> activations(const Activation& x, int token) const;
  Reach reach(const Activation& x, int token) const;
  void bound(const Reach& r, int panel, const float* y, float* low, float* high, const std::vector<int32_t>* without) const;
  void choose(const Reach& r, const Wanted& wanted, const float* y, float* low, float* high, std::vector<uint8_t>& chosen) const;
  void fill(const Activation& x, Array& out, const std::vector<uint8_t>& chosen) const;

  std::shared_ptr<Linear> head_;
  std::vector<float> rest_;  // [panels * 16] lengths of the lower bits
  float whole_ = 0;          // bound on the length of any row
  bool sound_ = true;
  int count_ = 0;
  std::vector<float> along_;       // [panel][direction][16] products of the lower bits
  std::vector<float> directions_;  // [direction][cols]
  std::vector<double> lengths_;    // of the directions
  std::vector<float> solve_;       // [direction][cols]: times activations, how far they go along each direction
};

}  // namespace gangpao
