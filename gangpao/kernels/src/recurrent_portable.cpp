// Gated DeltaNet for one instruction set; see recurrent_body.h.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "recurrent_isa.h"

namespace gangpao {
namespace recurrent_portable {
#include "simd_portable.h"
#include "recurrent_body.h"
}  // namespace recurrent_portable

const DeltaKernels portable_delta = recurrent_portable::make_delta("portable");

}  // namespace gangpao
