// What kernels took: time that is counted while somebody asks for it, and the peak that multiply-adds have here.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>

namespace gangpao {

// Nanoseconds and number of kernel calls since counting began.
struct KernelTime {
  static inline std::atomic<bool> counting{false};
  static inline std::atomic<int64_t> ns{0}, calls{0};
};

// Stands in every kernel call: two looks at the clock while time is counted, else one branch.
class Counted {
 public:
  Counted() : counting_(KernelTime::counting.load(std::memory_order_relaxed)) {
    if (counting_) from_ = std::chrono::steady_clock::now();
  }
  ~Counted() {
    if (!counting_) return;
    auto spent = std::chrono::steady_clock::now() - from_;
    KernelTime::ns.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count(), std::memory_order_relaxed);
    KernelTime::calls.fetch_add(1, std::memory_order_relaxed);
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  bool counting_;
  std::chrono::steady_clock::time_point from_;
};

// Multiply-adds of 4-bit weights a second, 1e9, of all threads together with everything in registers and the nearest cache.
double multiply_add_peak(double seconds);

}  // namespace gangpao
