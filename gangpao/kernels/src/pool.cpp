#include "pool.h"

#include <algorithm>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#elif defined(__aarch64__)
static inline void relax() { asm volatile("yield"); }
#else
static inline void relax() {}
#endif

namespace gangpao {

namespace {
constexpr uint64_t kNext = 0x7fffffffu;  // also "closed": no item has this number
// About 50 to 100 us of spinning: longer than Python takes between two kernels, shorter than a user would mind.
constexpr int kSpin = 2000;
constexpr int kYield = 200;
}  // namespace

Pool::Pool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker(i); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

// Runs pieces of the current job until none is left; true if it ran any.
bool Pool::work(int thread) {
  bool any = false;
  for (;;) {
    uint64_t t = ticket_.load(std::memory_order_acquire);
    int items = items_.load(std::memory_order_relaxed), chunk = chunk_.load(std::memory_order_relaxed);
    Fn fn = fn_.load(std::memory_order_relaxed);
    void* context = context_.load(std::memory_order_relaxed);
    int begin = int(t & kNext);
    if (begin >= items) return any;
    // Large pieces first, because a long run of memory is read fastest; small ones last, so that all finish together.
    int share = (items - begin) / (2 * threads());
    int end = std::min(begin + std::max(share / chunk, 1) * chunk, items);
    // The ticket is unchanged since the fields above were read, so they belong to its epoch.
    if (!ticket_.compare_exchange_weak(t, t + uint64_t(end - begin), std::memory_order_acq_rel)) continue;
    fn(context, begin, end, thread);
    done_.fetch_add(end - begin, std::memory_order_release);
    any = true;
  }
}

void Pool::worker(int thread) {
  int idle = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    if (work(thread)) {
      idle = 0;
    } else if (++idle < kSpin) {
      relax();
    } else if (idle < kSpin + kYield) {
      std::this_thread::yield();
    } else {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [this] {
        return stop_.load() || int(ticket_.load() & kNext) < items_.load();
      });
      sleepers_.fetch_sub(1);
      idle = 0;
    }
  }
}

void Pool::run(int items, int chunk, Fn fn, void* context) {
  std::lock_guard<std::mutex> lock(job_);
  run_alone(items, chunk, fn, context);
}

bool Pool::try_run(int items, int chunk, Fn fn, void* context) {
  std::unique_lock<std::mutex> lock(job_, std::try_to_lock);
  if (lock.owns_lock()) run_alone(items, chunk, fn, context);
  return lock.owns_lock();
}

void Pool::run_alone(int items, int chunk, Fn fn, void* context) {
  if (items <= 0) return;
  if (workers_.empty() || items <= chunk) {
    fn(context, 0, items, 0);
    return;
  }
  uint64_t epoch = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(epoch << 32 | kNext, std::memory_order_seq_cst);  // closed while the fields change,
  std::atomic_thread_fence(std::memory_order_seq_cst);            // and seen to be before any of them (ARM may turn stores around)
  done_.store(0, std::memory_order_relaxed);
  items_.store(items, std::memory_order_relaxed);
  chunk_.store(chunk, std::memory_order_relaxed);
  fn_.store(fn, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  ticket_.store(epoch << 32, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst)) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  work(0);
  for (int spins = 0; done_.load(std::memory_order_acquire) < items; ++spins) {
    if (spins < kSpin) relax();
    else std::this_thread::yield();
  }
}

}  // namespace gangpao
