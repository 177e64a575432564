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
namespace peak_avx2 {
#pragma GCC diagnostic ignored "-Wunused-function"
#include "simd_avx2.h"
#include "peak_body.h"
}  // namespace peak_avx2

const PeakKernel avx2_peak = {"avx2", peak_avx2::multiply_adds};

}  // namespace gangpao
