// The kernels for one instruction set; see isa_body.h.
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
namespace isa_neon {
#include "simd_neon.h"
#include "isa_body.h"
}  // namespace isa_neon

const Kernels neon_kernels = isa_neon::make_table("neon");

}  // namespace gangpao
