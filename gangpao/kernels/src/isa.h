// What every instruction set offers: a table of kernels that work on a part of a job. Threads and Python are module.cpp's.
#pragma once
#include "pack.h"
#include "quantize_rows.h"

namespace gangpao {

constexpr int kPage = 64;  // positions of a page of the cache; attention goes through them page by page
constexpr int kRowsAtOnce = 64;  // (token, head) rows of a piece of attention

// How keys or values of a cache are kept: numbers of 8 bits share an f16 scale in groups of 16 dims, of 4 bits in groups of 32.
enum class Kept : int { F16, INT8, INT4 };
constexpr int kInt8Group = 16, kInt4Group = 32;

// One layer and KV head of one page of the cache.
struct HeadCache {
  void *k, *v;
  uint16_t *k_scale, *v_scale;  // not of f16
  int head_dim;
  Kept keys, values;
};

// One layer and KV head of the whole cache: of page 0, and how far it is from there to the next page's.
struct HeadPages {
  HeadCache first;
  size_t stride;
  HeadCache at(int page) const {
    size_t far = stride * size_t(page);
    auto move = [far](void* p) { return static_cast<uint8_t*>(p) + far; };
    return {move(first.k), move(first.v), reinterpret_cast<uint16_t*>(move(first.k_scale)),
            reinterpret_cast<uint16_t*>(move(first.v_scale)), first.head_dim, first.keys, first.values};
  }
};

// A token that attention is computed for: which position it is, the pages of its sequence, and the first position that it sees.
struct Place {
  int position;
  const int32_t* pages;
  int first = 0;
};

struct AttentionShape {
  int num_heads, num_kv_heads, head_dim, rope_dim;
  const float *q_norm, *k_norm;  // [head_dim] or null
  float eps, scale;
  int window = 0;  // positions that a token sees, itself among them; 0: all
};

// One head of what rows attend to without a cache: k [tile][dim][16 positions] and v [position][padded], zeros behind position n up
// to a multiple of kPage; padded is dim up to a multiple of 16.
struct HeadTiles {
  const float *k, *v;
  int n, dim, padded;
};

enum class Gelu : int { ERF, TANH, QUICK };

constexpr int kRankGroup = 4;  // ranks of A that lie side by side
constexpr int kRowsTogether = 4;  // rows of a step that meet an adapter at once
constexpr int kExact = 512;  // products of int16 (15 bits) and int8 (7 bits) whose sum int32 holds
static_assert(int64_t(kExact) * 127 * 32767 < int64_t(1) << 31, "a sum may be too large");

// n floats as int16 in whole vectors, with a scale for each kExact of them; and bytes for kRowsTogether such rows (low_rank.h).
constexpr int narrow_stride(int n) { return (n + 31) / 32 * 32; }
constexpr int exact_blocks(int n) { return (n + kExact - 1) / kExact; }
constexpr size_t low_rank_scratch(int n) {
  return (size_t(narrow_stride(n)) * sizeof(int16_t) + size_t(exact_blocks(n)) * sizeof(float)) * kRowsTogether;
}

// B of an adapter for one matrix of a layer, and where its ranks and outputs begin. F32: [panel of 16 outputs][rank][16]; int8:
// [panel][two ranks][16][2].
struct LowRankPart {
  int first_rank, rank, first_row, rows;
  const uint8_t* b;
  const float* factor;  // [panels]
};

// A of an adapter for all matrices of a layer, one below the other. F32: [group of ranks][16 columns][kRankGroup][16]; int8:
// [group][32 columns][kRankGroup][32].
struct LowRankMatrices {
  bool bytes;  // int8, else F32
  int cols;
  const uint8_t* a;
  const float* factor;  // [ranks]
};

// Training in bfloat16 (between.h): n, and a head's half, are multiples of 16.
struct TrainingKernels {
  void (*swiglu)(const uint16_t* gate, const uint16_t* up, int n, uint16_t* out);
  void (*swiglu_back)(const uint16_t* gate, const uint16_t* up, const uint16_t* d, int n, uint16_t* d_gate, uint16_t* d_up);
  float (*rmsnorm)(const uint16_t* x, const float* weight, int n, float eps, uint16_t* out);
  void (*rmsnorm_back)(const uint16_t* x, const uint16_t* d, const float* weight, float r, int n, uint16_t* dx, float* d_weight);
  void (*turn)(const uint16_t* x, const float* cos, const float* sin, int half, float scale, float* out);
  void (*turn_back)(const uint16_t* d, const float* cos, const float* sin, int half, float scale, uint16_t* out);
};

struct Kernels {
  const char* name;
  void (*linear)(const Packed&, const Acts&, const Out&, Ahead, int begin, int end, uint8_t* scratch);
  size_t (*scratch_bytes)(int cols, int tokens);
  void (*rest_norms)(const Packed&, int begin, int end, float* rest, float* whole);  // of a matrix in two planes (planes.h)
  void (*panel_bounds)(const float* y, int lanes, const float* along, const float* how_far, int count, const float* rest, float outside,
                       float error, float* low, float* high);
  void (*rmsnorm)(const float* x, const float* weight, int n, float eps, float* out);
  void (*quantize_blocks)(const float* x, int cols, const Quants&, int token);
  void (*quantize_supers)(const float* x, int cols, const Quants&, int token);
  void (*swiglu)(const float* gate, const float* up, int n, float* out);
  void (*layernorm)(const float* x, const float* weight, const float* bias, int n, float eps, float* out);
  void (*gelu)(const float* x, int n, Gelu kind, float* out);
  // Rows (at most kRowsAtOnce) of one head over all positions; scratch: 2 * kRowsAtOnce * padded floats.
  void (*attend_all)(const HeadTiles&, const float* q, int q_stride, float scale, int rows, float* out, int out_stride, float* scratch);
  int64_t (*exp_total)(const float* x, int n, float peak, const double* coarse, const double* fine);
  void (*rope_append)(float* row, const AttentionShape&, const float* cos, const float* sin, const Place&, const HeadPages*);
  // Rows are (token, head) pairs of one KV head: q and out rows of `tokens`, `group` heads each. scratch: 2 * kPage * head_dim floats.
  void (*attend)(const HeadPages&, const float* q, int q_stride, float* out, int out_stride, int group, int tokens, const Place*,
                 float* scratch);
  // Means of the keys of a whole page, [kPage / 16][head_dim]; and what pages are worth to the queries of one KV head (choose.h).
  void (*page_means)(const HeadCache&, float* out, float* scratch);
  void (*page_worth)(const float* q, int heads, int head_dim, const float* const* means, int pages, float* worth, float* scratch);
  // h [rows, h_stride]: groups [begin, end) of ranks of A x; out += B h for panels [begin, end) of one part.
  void (*low_rank_down)(const LowRankMatrices&, int begin, int end, const float* x, int x_stride, int rows, float scale, float* h,
                        int h_stride, uint8_t* scratch);
  void (*low_rank_up)(bool bytes, const LowRankPart&, int begin, int end, const float* h, int h_stride, int rows, float* out,
                      int out_stride, uint8_t* scratch);  // scratch of both: low_rank_scratch of the columns, of the ranks
  // A row of GGUF blocks as floats; source: source_index of its type.
  void (*dequantize)(int source, const uint8_t* row, int cols, float* out);
  // Blocks [begin, end) of rows of `cols` weights, in a type that is `Written`; columns: what each weighs, or null.
  void (*write_blocks)(int type, const float* values, const float* columns, size_t cols, size_t begin, size_t end, uint8_t* out);
  TrainingKernels training;
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels, amx_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels, dotprod_kernels, i8mm_kernels;
#endif

}  // namespace gangpao
