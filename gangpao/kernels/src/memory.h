// Memory for weights, caches and work buffers: aligned, zeroed, given back when the last user is gone.
#pragma once
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#endif

#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

namespace gangpao {

// Whole pages straight from the kernel: zero on first touch, so what is never used costs nothing. Huge pages where allowed:
// weights are read from end to end and would otherwise miss the TLB every 4 KB.
class Pages {
 public:
  Pages(size_t bytes, bool huge) : bytes_(bytes ? bytes : 1) {
#if defined(_WIN32)
    (void)huge;
    void* p = VirtualAlloc(nullptr, bytes_, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (!p) throw std::bad_alloc();
#else
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (huge) madvise(p, bytes_, MADV_HUGEPAGE);
#else
    (void)huge;
#endif
#endif
    data_ = static_cast<uint8_t*>(p);
  }
#if !defined(_WIN32)
  // The first bytes of a file, read-only: they come to memory as they are read, and leave it where it is short.
  Pages(int file, size_t bytes) : bytes_(bytes) {
    void* p = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(p);
  }
#endif
  ~Pages() {
#if defined(_WIN32)
    VirtualFree(data_, 0, MEM_RELEASE);
#else
    munmap(data_, bytes_);
#endif
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

using SharedPages = std::shared_ptr<Pages>;

// Hands out pieces of large blocks, so that matrices share huge pages instead of rounding each up to 2 MB. One that was filled from a
// file hands out the pieces that another one wrote there, in the same order.
class Arena {
 public:
  struct Piece {
    SharedPages pages;
    uint8_t* data;
  };
  Piece take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (filled_ && used_ + bytes > pages_->size()) throw std::invalid_argument("packed weights: the file holds fewer");
    if (!pages_ || used_ + bytes > pages_->size()) {
      constexpr size_t kChunk = size_t(64) << 20;
      pages_ = std::make_shared<Pages>(bytes > kChunk ? bytes : kChunk, true);
      used_ = 0;
    }
    uint8_t* p = pages_->data() + used_;
    used_ += bytes;
    total_ += bytes;
    pieces_.push_back({p, bytes});
    return {pages_, p};
  }
  void fill(int file, size_t bytes) {
    if (pages_) throw std::invalid_argument("packed weights: the arena is in use already");
    pages_ = std::make_shared<Pages>(file, bytes);
    filled_ = true;
  }
  bool filled() const { return filled_; }
  // All pieces, one behind the other.
  const std::vector<std::pair<const uint8_t*, size_t>>& pieces() const { return pieces_; }
  size_t total() const { return total_; }

 private:
  SharedPages pages_;
  std::vector<std::pair<const uint8_t*, size_t>> pieces_;
  size_t used_ = 0, total_ = 0;
  bool filled_ = false;
};

}  // namespace gangpao
