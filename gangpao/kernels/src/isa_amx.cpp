// The kernels for one instruction set; see isa_body.h.
#define GANGPAO_AMX
#include <immintrin.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa.h"

namespace gangpao {
namespace isa_amx {
#include "simd_avx512.h"
#include "isa_body.h"
}  // namespace isa_amx

const Kernels amx_kernels = isa_amx::make_table("amx");

}  // namespace gangpao
