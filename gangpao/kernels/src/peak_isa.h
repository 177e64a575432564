// As many multiply-adds as an instruction set does with everything in registers and the nearest cache: what a matrix product could reach
// at most. A table of its own, compiled by peak_*.cpp; see peak_body.h.
#pragma once
#include <cstdint>

namespace gangpao {

constexpr int kPeakBytes = 4096;  // bytes of numbers that multiply_adds goes through

struct PeakKernel {
  const char* name;
  // x: kPeakBytes bytes. Returns how many multiply-adds were done; their sum goes into *sum, so that none is left out.
  int64_t (*multiply_adds)(int rounds, const int8_t* x, int32_t* sum);
};

extern const PeakKernel portable_peak;
#if defined(__x86_64__)
extern const PeakKernel avx2_peak, avx512_peak;
#endif

}  // namespace gangpao
