// Gated DeltaNet for one instruction set; see recurrent_body.h.
#include <arm_neon.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "recurrent_isa.h"

namespace gangpao {
namespace recurrent_neon {
#include "simd_neon.h"
#include "recurrent_body.h"
}  // namespace recurrent_neon

const DeltaKernels neon_delta = recurrent_neon::make_delta("neon");

}  // namespace gangpao
