// One row after the other through a small kernel, on the pool.
#pragma once
#include <vector>

#include "runtime.h"

namespace gangpao {

// Runs f(token) for n tokens; a few tokens are not worth waking anybody.
template <class F>
void each_token(int n, F f) {
  Pool& pool = *Runtime::get().pool;
  auto job = [&](int begin, int end, int) {
    for (int t = begin; t < end; ++t) f(t);
  };
  pool.run(n, n < 4 ? n : 1, job);
}

// Every token's row by make(token, row), in the forms that `out` keeps.
template <class F>
void fill_rows(int n, Activation& out, F make) {
  out.begin(n);
  each_token(n, [&](int t) {
    static thread_local std::vector<float> row;
    row.resize(size_t(out.acts.f_stride));
    float* y = out.floats ? const_cast<float*>(out.acts.f) + size_t(t) * out.acts.f_stride : row.data();
    make(t, y);
    out.fill(y, t);
  });
}

}  // namespace gangpao
