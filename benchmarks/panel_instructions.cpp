// The matrix product of one instruction set alone, for panel_instructions.py to count: -DLAYER="simd_avx2.h" -DVALUES=U4 -DSTYLE=K.
// As a program: `panel COLUMNS TOKENS` multiplies two panels. As an object (-DWHOLE): functions of 256 and of 512 columns whose loops
// the compiler unrolls, so that their difference can be read off the code where the machine cannot run it.
#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "isa.h"

namespace gangpao {
namespace counted {
#include LAYER
#include "unpack.h"
#include "linear.h"
#include "linear_k.h"
#ifdef GANGPAO_AMX
#include "amx.h"
#include "amx_k.h"
#endif
#include "linear_any.h"

constexpr Values kValues = Values::VALUES;
constexpr Style kStyle = Style::STYLE;

static Packed matrix(const uint8_t* data, int cols) {
  Packed w;
  w.format = {kValues, kStyle, kStyle == Style::F16 ? 8 : 0};
  w.rows = 2 * kPanelRows, w.cols = cols, w.data = data;
  w.panel_stride = panel_bytes(w.format, cols / kBlock);
  return w;
}

#ifdef WHOLE
extern "C" void decode_256(const uint8_t* data, const Acts& a, const Out& out) { few<kValues, kStyle, 1>(matrix(data, 256), a, out, {}, 0, 0); }
extern "C" void decode_512(const uint8_t* data, const Acts& a, const Out& out) { few<kValues, kStyle, 1>(matrix(data, 512), a, out, {}, 0, 0); }
#endif
}  // namespace counted
}  // namespace gangpao

#ifndef WHOLE
int main(int argc, char** argv) {
  using namespace gangpao;
  if (argc != 3) return 2;
  int cols = std::atoi(argv[1]), tokens = std::atoi(argv[2]), padded = (tokens + 15) / 16 * 16;
  // Static, so that no instruction goes into clearing them.
  constexpr size_t kCols = 2048, kTokens = 64, kScratch = 8 << 20;
  if (cols > int(kCols) || tokens > int(kTokens) || counted::scratch_size(cols, padded) > kScratch) return 2;
  alignas(64) static uint8_t weights[kCols * 64], scratch[kScratch];
  static int8_t q[kCols * kTokens];
  static float scale[kCols * kTokens], sum[kCols * kTokens], result[32 * kTokens];
  static int32_t isum[kCols * kTokens];
  static int16_t sums[kCols * kTokens];
  Quants x{q, cols, tokens > 8 ? padded : tokens, scale, sum, isum, sums};
  Acts a;
  a.n = tokens, a.cols = cols, a.blocks = a.supers = x;
  counted::panels<counted::kValues, counted::kStyle>(counted::matrix(weights, cols), a, {result, 32}, {}, 0, 2, scratch);
  return result[0] != 0;
}
#endif
