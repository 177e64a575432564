// Gated DeltaNet for one instruction set; see recurrent_body.h.
#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "recurrent_isa.h"

namespace gangpao {
namespace recurrent_avx2 {
#include "simd_avx2.h"
#include "recurrent_body.h"
}  // namespace recurrent_avx2

const DeltaKernels avx2_delta = recurrent_avx2::make_delta("avx2");

}  // namespace gangpao
