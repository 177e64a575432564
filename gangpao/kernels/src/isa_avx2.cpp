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
namespace isa_avx2 {
#include "simd_avx2.h"
#include "isa_body.h"
}  // namespace isa_avx2

const Kernels avx2_kernels = isa_avx2::make_table("avx2");

}  // namespace gangpao
