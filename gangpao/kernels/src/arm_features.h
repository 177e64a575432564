// What an ARM processor can do beyond plain NEON, asked of the system: /proc/cpuinfo is text for people, and emulators show the
// host's there.
#pragma once

#if defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace gangpao {

struct ArmFeatures {
  bool dotprod, i8mm;
};

#if defined(__APPLE__)
inline bool apple_has(const char* name) {
  int there = 0;
  size_t size = sizeof there;
  return sysctlbyname(name, &there, &size, nullptr, 0) == 0 && there;
}
#endif

inline ArmFeatures arm_features() {
#if defined(__linux__)  // Android too
  constexpr unsigned long kDotprod = 1ul << 20, kI8mm = 1ul << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
  return {(getauxval(AT_HWCAP) & kDotprod) != 0, (getauxval(AT_HWCAP2) & kI8mm) != 0};
#elif defined(__APPLE__)
  return {apple_has("hw.optional.arm.FEAT_DotProd"), apple_has("hw.optional.arm.FEAT_I8MM")};
#elif defined(_WIN32)
  constexpr DWORD kDotprod = 43, kI8mm = 66;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE, PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
  return {IsProcessorFeaturePresent(kDotprod) != 0, IsProcessorFeaturePresent(kI8mm) != 0};
#else
  return {false, false};
#endif
}

}  // namespace gangpao
#endif
