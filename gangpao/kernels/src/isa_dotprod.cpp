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
namespace isa_dotprod {
#include "simd_neon.h"
#include "isa_body.h"
}  // namespace isa_dotprod

const Kernels dotprod_kernels = isa_dotprod::make_table("dotprod");

}  // namespace gangpao
