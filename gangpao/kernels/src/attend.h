// Attention over the cache: over all positions, or in long contexts over those that are worth it.
#pragma once
#include "runtime.h"

namespace gangpao {

// Means of keys of a cache's whole pages, made when they are first asked for.
class PageMeans {
 public:
  explicit PageMeans(const Cache& cache);
  int layers, kv_heads, head_dim, num_pages;
  SharedPages pages;
  float* at(int layer, int page, int head) const;
  void forget(int page);  // its keys change
  bool learn(int layer, int page);  // whether they were not known; the caller makes them
  static size_t page_bytes(int layers, int kv_heads, int head_dim);

 private:
  std::vector<uint8_t> known_;  // [layer][page]
};

// A token at position `dense` or later looks at the first pages, at its own and those in front of it, `near` in all, and at the `chosen`
// best of the others.
struct SparseRule {
  SparseRule(int d, int f, int n, int c) : dense(d), first(f), near(n), chosen(c) {}
  int dense, first, near, chosen;
};

void attend(const Array& qkv, const Rows& rows, const AttentionSpec& spec, const Cache& cache, int layer, Array& result, Activation& out);
void attend_sparse(const Array& qkv, const Rows& rows, const AttentionSpec& spec, const Cache& cache, int layer, PageMeans& means,
                   const SparseRule& rule, Array& result, Activation& out);

}  // namespace gangpao
