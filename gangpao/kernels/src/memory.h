// Memory for weights, caches and work buffers: aligned, zeroed, given back when the last user is gone.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace gangpao {

// Whole pages straight from the kernel: zero on first touch, so what is never used costs nothing. Huge pages where allowed:
// weights are read from end to end and would otherwise miss the TLB every 4 KB.
class Pages {
 public:
  Pages(size_t bytes, bool huge) : bytes_(bytes ? bytes : 1) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (huge) madvise(p, bytes_, MADV_HUGEPAGE);
#else
    (void)huge;
#endif
    data_ = static_cast<uint8_t*>(p);
  }
  ~Pages() { munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

using SharedPages = std::shared_ptr<Pages>;

// Hands out pieces of large blocks, so that matrices share huge pages instead of rounding each up to 2 MB.
class Arena {
 public:
  struct Piece {
    SharedPages pages;
    uint8_t* data;
  };
  Piece take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (!pages_ || used_ + bytes > pages_->size()) {
      constexpr size_t kChunk = size_t(64) << 20;
      pages_ = std::make_shared<Pages>(bytes > kChunk ? bytes : kChunk, true);
      used_ = 0;
    }
    uint8_t* p = pages_->data() + used_;
    used_ += bytes;
    total_ += bytes;
    return {pages_, p};
  }
  size_t total() const { return total_; }

 private:
  SharedPages pages_;
  size_t used_ = 0, total_ = 0;
};

}  // namespace gangpao
