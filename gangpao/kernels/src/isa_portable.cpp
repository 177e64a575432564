// The kernels for one instruction set; see isa_body.h.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa.h"

namespace gangpao {
namespace isa_portable {
#include "simd_portable.h"
#include "isa_body.h"
}  // namespace isa_portable

const Kernels portable_kernels = isa_portable::make_table("portable");

}  // namespace gangpao
