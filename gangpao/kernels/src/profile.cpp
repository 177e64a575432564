#include "profile.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "peak_isa.h"
#include "runtime.h"

namespace gangpao {

namespace {

// Of the kernels that run. AMX has no table of its own: the peak is that of the vector unit beside its tiles.
const PeakKernel& peak_kernel() {
#if defined(__x86_64__)
  const char* name = Runtime::get().kernels->name;
  if (std::strcmp(name, "avx2") == 0) return avx2_peak;
  if (std::strcmp(name, "avx512") == 0 || std::strcmp(name, "amx") == 0) return avx512_peak;
#endif
  return portable_peak;
}

}  // namespace

double multiply_add_peak(double seconds) {
  constexpr int kRounds = 20000;
  const PeakKernel& kernel = peak_kernel();
  Pool& pool = *Runtime::get().pool;
  std::vector<int8_t> x(size_t(kPeakBytes), 1);
  std::atomic<int64_t> done{0}, sink{0};
  auto job = [&](int begin, int end, int) {
    for (int i = begin; i < end; ++i) {
      int32_t total = 0;
      done += kernel.multiply_adds(kRounds, x.data(), &total);
      sink += total;
    }
  };
  double best = 0, spent = 0;
  for (int round = 0; round < 3 || spent < seconds; ++round) {
    done = 0;
    auto from = std::chrono::steady_clock::now();
    pool.run(16 * pool.threads(), 1, job);
    double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
    spent += t;
    best = std::max(best, double(done.load()) / t);
  }
  return best / 1e9;
}

}  // namespace gangpao
