// The kernels for one instruction set; see isa_body.h.
#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa.h"

namespace gangpao {
namespace isa_avx512 {
#include "simd_avx512.h"
#include "isa_body.h"
}  // namespace isa_avx512

const Kernels avx512_kernels = isa_avx512::make_table("avx512");

}  // namespace gangpao
