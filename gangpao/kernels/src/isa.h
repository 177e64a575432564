// What every instruction set offers: a table of kernels that work on a part of a job. Threads and Python are module.cpp's.
#pragma once
#include "panel.h"

namespace gangpao {

// One layer and KV head of the cache.
struct HeadCache {
  void *k, *v;                  // f16 or int8
  uint16_t *k_scale, *v_scale;  // int8 only
  int head_dim;
  bool int8;
};

struct AttentionShape {
  int num_heads, num_kv_heads, head_dim, rope_dim;
  const float *q_norm, *k_norm;  // [head_dim] or null
  float eps, scale;
};

struct Kernels {
  const char* name;
  void (*linear)(const Packed&, const Acts&, const Out&, Ahead, int begin, int end, uint8_t* scratch);
  size_t (*scratch_bytes)(int cols, int tokens);
  void (*rmsnorm)(const float* x, const float* weight, int n, float eps, float* out);
  void (*quantize_blocks)(const float* x, int cols, const Quants&, int token);
  void (*quantize_supers)(const float* x, int cols, const Quants&, int token);
  void (*swiglu)(const float* gate, const float* up, int n, float* out);
  void (*rope_append)(float* row, const AttentionShape&, const float* cos, const float* sin, int position, const HeadCache*);
  // Rows are (token, head) pairs of one KV head: q and out rows of `tokens`, `group` heads each.
  void (*attend)(const HeadCache&, const float* q, int q_stride, float* out, int out_stride, int group, int tokens, int start);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels, amx_kernels;
#endif

}  // namespace gangpao
