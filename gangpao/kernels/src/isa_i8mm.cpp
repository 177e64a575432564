// The kernels for one instruction set; see isa_body.h.
#define GANGPAO_I8MM
#include <arm_neon.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa.h"

namespace gangpao {
namespace isa_i8mm {
#include "simd_neon.h"
#include "isa_body.h"
}  // namespace isa_i8mm

const Kernels i8mm_kernels = isa_i8mm::make_table("i8mm");

}  // namespace gangpao
