// Our thread pool: one parallel region per kernel, workers that spin, then yield, then sleep.
//
// A job is `items` independent pieces. A ticket (epoch << 32 | next item) hands them out by compare-and-swap, in runs that shrink
// from half of an equal share down to `chunk`. A worker that wakes late finds a ticket of another epoch or no items left and
// harms nothing: nobody waits for a thread that holds no work. Which thread runs an item never changes its result.
// One job runs at a time: a second caller waits, or (try_run) does its own work alone.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace gangpao {

class Pool {
 public:
  using Fn = void (*)(void* context, int begin, int end, int thread);
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }
  void run(int items, int chunk, Fn fn, void* context);
  // False, and nothing done, while another caller's job runs.
  bool try_run(int items, int chunk, Fn fn, void* context);

  template <class F>
  void run(int items, int chunk, F& f) {
    run(items, chunk, call<F>, &f);
  }
  template <class F>
  bool try_run(int items, int chunk, F& f) {
    return try_run(items, chunk, call<F>, &f);
  }

 private:
  template <class F>
  static void call(void* f, int begin, int end, int thread) {
    (*static_cast<F*>(f))(begin, end, thread);
  }
  void run_alone(int items, int chunk, Fn fn, void* context);
  bool work(int thread);
  void worker(int thread);

  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> items_{0};
  std::atomic<int> chunk_{1};
  std::atomic<Fn> fn_{nullptr};
  std::atomic<void*> context_{nullptr};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_, job_;
  std::condition_variable wake_;
};

}  // namespace gangpao
