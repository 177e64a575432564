// Included once by each isa_*.cpp after its SIMD layer, inside a namespace of its own so that no symbol of one
// instruction set can be linked into another.
#include "unpack.h"
#include "linear.h"
#include "linear_k.h"
#ifdef GANGPAO_AMX
#include "amx.h"
#include "amx_k.h"
#endif
#include "linear_any.h"
#include "planes.h"
#include "ops.h"
#include "attention.h"
#include "choose.h"
#include "vision.h"
#include "low_rank.h"
#include "blocks.h"
#include "dequantize.h"
#include "quantize_search.h"
#include "quantize_blocks.h"
#include "quantize_write.h"
#include "between.h"

static void attend_tokens(const HeadPages& c, const float* q, int q_stride, float* out, int out_stride, int group, int tokens,
                          const Place* places, float* scratch) {
  Row rows[kRows];
  int n = 0, head_dim = c.first.head_dim;
  for (int t = 0; t < tokens; ++t)
    for (int g = 0; g < group; ++g) {
      rows[n++] = {q + size_t(t) * q_stride + size_t(g) * head_dim, out + size_t(t) * out_stride + size_t(g) * head_dim,
                   places[t].position + 1, places[t].pages, places[t].first};
      if (n == kRows) attend_group(c, rows, n, scratch), n = 0;
    }
  attend_group(c, rows, n, scratch);
}

constexpr Kernels make_table(const char* name) {
  return {name, linear_panels, scratch_size, rest_norms_of, panel_bounds, rmsnorm_row, quantize_blocks, quantize_supers, swiglu_row,
          layernorm_row, gelu_row, attend_all_rows, exp_total_row, rope_append_token, attend_tokens, page_means, page_worth, low_rank_down, low_rank_up, dequantize_row, write_blocks,
          {swiglu_bf16, swiglu_back_bf16, rmsnorm_bf16, rmsnorm_back_bf16, turn_bf16, turn_back_bf16}};
}
