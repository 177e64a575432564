// Gated DeltaNet between Python and the kernels: states in memory, the tokens of a step, one layer's numbers.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "memory.h"
#include "recurrent_isa.h"
#include "runtime.h"

namespace gangpao {

// One layer's numbers; owns what the shape points to.
class DeltaSpec {
 public:
  DeltaShape shape{};
  std::vector<float> filter, a, dt, norm;
};

// States of texts in slots, each with all layers. Which slot is whose is not its business.
class States {
 public:
  States(int layers, int k_heads, int v_heads, int k_dim, int v_dim, int taps, int num_slots);
  int layers, num_slots;
  DeltaShape shape{};
  SharedPages pages;
  float* at(int slot, int layer) const;
  static size_t slot_bytes(int layers, int k_heads, int v_heads, int k_dim, int v_dim, int taps);

 private:
  size_t layer_floats_;
};

// The tokens of one step, text after text. log: rows of tokens that are in no state yet, [layer * log_rows + i].
class StateRows {
 public:
  struct Text {
    int begin, n, from, logged, log_rows;
    std::shared_ptr<Array> log;
    std::vector<std::pair<int, int>> commits;  // (tokens, slot)
  };
  std::vector<Text> texts;
  void clear() { texts.clear(); }
  void add(int begin, int n, int from, std::vector<std::pair<int, int>> commits, std::shared_ptr<Array> log, int log_rows, int logged);
};

void delta_net(const Array& x, const StateRows& rows, const DeltaSpec& spec, States& states, int layer, Array& result, Activation& out);
// out = gelu(gate) * up, of rows [gate | up]
void geglu(const Array& gate_up, int n, Activation& out);
// out += rmsnorm(x) * weight
void add_normed(const Array& x, int n, const Array& weight, float eps, Array& out);
// out = x * sigmoid(gates[:, column:])
void sigmoid_gate(const Array& x, const Array& gates, int column, int n, Activation& out);

}  // namespace gangpao
