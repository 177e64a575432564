// What encoders of pictures need beside the products: which rows and heads a thread takes, and the layout of keys and values.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "each_row.h"

namespace gangpao {

namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

int round_up(int x, int m) { return (x + m - 1) / m * m; }

// Positions [begin, end) of a head, begin a multiple of 16, from rows of n positions into tiles; zeros behind the last.
void pack_positions(const float* k, int k_stride, const float* v, int v_stride, int begin, int end, const HeadTiles& t) {
  auto* keys = const_cast<float*>(t.k);
  auto* values = const_cast<float*>(t.v);
  for (int p = begin; p < end; ++p) {
    float* to = keys + size_t(p / 16) * t.dim * 16 + p % 16;
    float* row = values + size_t(p) * t.padded;
    std::memset(row, 0, size_t(t.padded) * sizeof(float));
    if (p < t.n) std::memcpy(row, v + size_t(p) * v_stride, size_t(t.dim) * sizeof(float));
    const float* from = k + size_t(p) * k_stride;
    for (int d = 0; d < t.dim; ++d) to[size_t(d) * 16] = p < t.n ? from[d] : 0.0f;
  }
}

}  // namespace

Array Array::part(int first_row, int n, int first_col, int width) const {
  require(first_row >= 0 && n > 0 && n <= rows - first_row && first_col >= 0 && width > 0 && width <= cols - first_col,
          "Array: a part lies outside of it");
  Array out = *this;
  out.data = row(first_row) + first_col;
  out.rows = n, out.cols = width;
  return out;
}

void layernorm(const Array& x, int n, const Array& weight, const Array& bias, float eps, Activation& out) {
  require(x.cols == out.cols && weight.cols == x.cols && bias.cols == x.cols && n <= x.rows, "layernorm: shapes differ");
  const Kernels& k = *Runtime::get().kernels;
  fill_rows(n, out, [&](int t, float* y) { k.layernorm(x.row(t), weight.data, bias.data, x.cols, eps, y); });
}

void gelu(const Array& x, int n, Gelu kind, Activation& out) {
  require(x.cols == out.cols && n <= x.rows, "gelu: shapes differ");
  const Kernels& k = *Runtime::get().kernels;
  fill_rows(n, out, [&](int t, float* y) { k.gelu(x.row(t), x.cols, kind, y); });
}

// Head after head: its keys and values are laid out once, then pieces of 64 rows go over them. A window is small enough that its
// thread lays out its own.
void attend_all(const Array& q, const Array& k, const Array& v, int heads, float scale, int window, Array& out) {
  require(heads > 0 && q.cols % heads == 0 && k.cols == q.cols && v.cols == q.cols && out.cols == q.cols, "attend_all: shapes differ");
  require(k.rows == v.rows && out.rows == q.rows, "attend_all: other numbers of rows");
  require(window == 0 || (window > 0 && window <= kPage && q.rows == k.rows && q.rows % window == 0),
          "attend_all: rows are not whole windows of at most 64");
  Runtime& rt = Runtime::get();
  const Kernels& kernels = *rt.kernels;
  int dim = q.cols / heads, padded = round_up(dim, 16);
  int n = window ? window : k.rows, positions = round_up(n, kPage);
  size_t floats = size_t(positions) * (dim + padded), work = size_t(2) * kRowsAtOnce * padded;
  auto tiles = [&](float* at) { return HeadTiles{at, at + size_t(positions) * dim, n, dim, padded}; };
  if (window) {
    auto job = [&](int begin, int end, int thread) {
      auto* scratch = reinterpret_cast<float*>(rt.scratch(thread, (floats + work) * sizeof(float)));
      HeadTiles t = tiles(scratch);
      for (int i = begin; i < end; ++i) {
        int row = i / heads * window, col = i % heads * dim;
        pack_positions(k.row(row) + col, k.stride, v.row(row) + col, v.stride, 0, positions, t);
        kernels.attend_all(t, q.row(row) + col, q.stride, scale, window, out.row(row) + col, out.stride, scratch + floats);
      }
    };
    return rt.pool->run(q.rows / window * heads, 4, job);
  }
  HeadTiles t = tiles(rt.shared(floats));
  int col = 0;
  auto lay_out = [&](int begin, int end, int) {
    pack_positions(k.data + col, k.stride, v.data + col, v.stride, begin * 16, end * 16, t);
  };
  auto attend = [&](int begin, int end, int thread) {
    auto* scratch = reinterpret_cast<float*>(rt.scratch(thread, work * sizeof(float)));
    for (int i = begin; i < end; ++i) {
      int row = i * kRowsAtOnce, rows = std::min(kRowsAtOnce, q.rows - row);
      kernels.attend_all(t, q.row(row) + col, q.stride, scale, rows, out.row(row) + col, out.stride, scratch);
    }
  };
  for (int h = 0; h < heads; ++h, col += dim) {
    rt.pool->run(positions / 16, 4, lay_out);
    rt.pool->run((q.rows + kRowsAtOnce - 1) / kRowsAtOnce, 1, attend);
  }
}

}  // namespace gangpao
