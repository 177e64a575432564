// The peak of multiply-adds of one instruction set; see peak_body.h.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "peak_isa.h"

namespace gangpao {
namespace peak_portable {
#pragma GCC diagnostic ignored "-Wunused-function"
#include "simd_portable.h"
#include "peak_body.h"
}  // namespace peak_portable

const PeakKernel portable_peak = {"portable", peak_portable::multiply_adds};

}  // namespace gangpao
