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
namespace recurrent_avx512 {
#include "simd_avx512.h"
#include "recurrent_body.h"
}  // namespace recurrent_avx512

const DeltaKernels avx512_delta = recurrent_avx512::make_delta("avx512");

}  // namespace gangpao
