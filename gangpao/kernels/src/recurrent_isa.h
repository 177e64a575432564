// Gated DeltaNet and gates, what every instruction set offers of it: tokens of one text through the state of one key head.
#pragma once
#include <cstddef>

namespace gangpao {

// One layer. A token's row is [q | k | v | z | beta | alpha]: the convolution's channels, the gate of the output, and two numbers for
// each value head. Value head h belongs to key head h % k_heads. k_dim and v_dim are multiples of 16.
struct DeltaShape {
  int k_heads, v_heads, k_dim, v_dim, taps;
  const float* filter;          // [taps][channels], the newest token last
  const float *a, *dt;          // [v_heads]: decay = e^(a * softplus(alpha + dt))
  const float* norm;            // [v_dim]
  float eps;
  int key_size() const { return k_heads * k_dim; }
  int value_size() const { return v_heads * v_dim; }
  int channels() const { return 2 * key_size() + value_size(); }
  int width() const { return channels() + value_size() + 2 * v_heads; }
  size_t state_floats() const { return size_t(v_heads) * k_dim * v_dim; }
  size_t tail_floats() const { return size_t(taps - 1) * channels(); }
};

// A state of one layer: [v_heads][k_dim][v_dim], then the last inputs of the convolution [taps - 1][channels].
struct Commit {
  int after;     // tokens that are in it
  float* state;
};

// The tokens of one text: `skipped` whose outputs are there already, then those whose outputs go to `out`.
struct DeltaRun {
  const float* const* rows;  // [tokens]
  float* const* out;         // [tokens - skipped], each [value_size]
  int skipped, tokens;
  const float* from;         // the state before them; null is nothing
  const Commit* commits;     // in rising order, at least one; the last is the text's own
  int num_commits;
};

struct DeltaKernels {
  const char* name;
  size_t (*scratch_floats)(const DeltaShape&);
  void (*head)(const DeltaShape&, const DeltaRun&, int head, float* scratch);
  // out = x / (1 + e^-gate)
  void (*gate)(const float* x, const float* gate, int n, float* out);
  // out = gelu(gate) * up, by the tangent
  void (*geglu)(const float* gate, const float* up, int n, float* out);
};

extern const DeltaKernels portable_delta;
#if defined(__x86_64__)
extern const DeltaKernels avx2_delta, avx512_delta;
#elif defined(__aarch64__)
extern const DeltaKernels neon_delta;  // floats only, so dotprod and i8mm add nothing
#endif

}  // namespace gangpao
