// The peak of multiply-adds of one instruction set; see peak_body.h.
#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "peak_isa.h"

namespace gangpao {
namespace peak_avx512 {
#pragma GCC diagnostic ignored "-Wunused-function"
#include "simd_avx512.h"
#include "peak_body.h"
}  // namespace peak_avx512

const PeakKernel avx512_peak = {"avx512", peak_avx512::multiply_adds};

}  // namespace gangpao
