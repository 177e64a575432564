// The small float kernels around the matrix products: norm, quantization of activations, RoPE with cache append, SwiGLU.

#include "exp16.h"

// What brings `top` to `most`; 0 where that is beyond float, so that numbers that small are 0 on every instruction set.
static inline float inverse_of(float top, float most) {
  float inverse = most / top;
  return inverse <= std::numeric_limits<float>::max() ? inverse : 0.0f;
}

// One row to int8 with one scale for 32 columns; cols is a multiple of 32.
static void quantize_blocks(const float* x, int cols, const Quants& o, int token) {
  int8_t* q = o.q + size_t(token) * o.q_stride;
  for (int b = 0; b < cols / kBlock; ++b, x += kBlock, q += kBlock) {
    F lo = fload(x), hi = fload(x + 16);
    float top = fhmax(fmax(fabs16(lo), fabs16(hi)));
    F inverse = fset(inverse_of(top, 127.0f));
    I a = toint(mul(lo, inverse)), c = toint(mul(hi, inverse));
    s8store(q, a);
    s8store(q + 16, c);
    int sum = isum(iadd(a, c));
    size_t at = size_t(b) * o.token_stride + token;
    o.scale[at] = top / 127.0f;
    o.sum[at] = o.scale[at] * float(sum);
    o.isum[at] = sum;
  }
}

// One row to int8 with one scale for 256 columns; cols is a multiple of 256.
static void quantize_supers(const float* x, int cols, const Quants& o, int token) {
  int8_t* q = o.q + size_t(token) * o.q_stride;
  for (int s = 0; s < cols / kSuperColumns; ++s, x += kSuperColumns, q += kSuperColumns) {
    F most = fabs16(fload(x));
    for (int i = 16; i < kSuperColumns; i += 16) most = fmax(most, fabs16(fload(x + i)));
    float top = fhmax(most);
    F inverse = fset(inverse_of(top, 127.0f));
    size_t at = size_t(s) * o.token_stride + token;
    o.scale[at] = top / 127.0f;
    int16_t* sums = o.sums + at * kSums;
    for (int h = 0; h < 16; ++h) {
      I a = toint(mul(fload(x + 16 * h), inverse));
      s8store(q + 16 * h, a);
      sums[h] = int16_t(isum(a));
    }
    int all = 0;
    for (int b = 0; b < 8; ++b) all += sums[kSumsOfBlocks + b] = int16_t(sums[2 * b] + sums[2 * b + 1]);
    sums[kSumOfAll] = int16_t(all);
  }
}

static inline float sum_squares(const float* x, int n) {
  F s = fzero();
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    F v = fload(x + i);
    s = fma(v, v, s);
  }
  float total = fsum(s);
  for (; i < n; ++i) total = std::fmaf(x[i], x[i], total);
  return total;
}

// out = x / sqrt(mean(x^2) + eps) * weight; in place is allowed.
static void rmsnorm_row(const float* x, const float* weight, int n, float eps, float* out) {
  float r = 1.0f / std::sqrt(sum_squares(x, n) / float(n) + eps);
  int i = 0;
  for (; i + 16 <= n; i += 16) fstore(out + i, mul(mul(fload(x + i), fset(r)), fload(weight + i)));
  for (; i < n; ++i) out[i] = x[i] * r * weight[i];
}

// out = gate / (1 + e^-gate) * up
static void swiglu_row(const float* gate, const float* up, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    F g = fload(gate + i);
    F y = div(g, add(fset(1.0f), exp16(sub(fzero(), g))));
    fstore(out + i, mul(y, fload(up + i)));
  }
  if (i < n) {
    float g[16] = {}, u[16] = {};
    for (int j = i; j < n; ++j) g[j - i] = gate[j], u[j - i] = up[j];
    F v = fload(g);
    F y = mul(div(v, add(fset(1.0f), exp16(sub(fzero(), v)))), fload(u));
    store_lanes(out + i, y, n - i);
  }
}

// The sum over a row of e^(x - peak) in units of 2^-44, each rounded to a whole number, so that its order does not matter; the bits
// of engine/exact.py, which has the tables: e^(-i / 64), and e^(-j / 65536) for j below 1024. Anything but a number adds nothing.
static int64_t exp_total_row(const float* x, int n, float peak, const double* coarse, const double* fine) {
  constexpr double kLowest = -44.0, kUnit = 17592186044416.0;
  constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52: a sum with it is rounded to a whole number
  int64_t total = 0;
  for (int i = 0; i < n; ++i) {
    double v = double(x[i]) - double(peak);
    v = v > kLowest ? v : kLowest;
    double nearest = (v * -65536.0 + kWhole) - kWhole;
    int at = int(nearest);
    double rest = (nearest * (1.0 / 65536.0) + v) + 1.0;
    double weight = coarse[at >> 10] * fine[at & 1023] * (v > kLowest ? rest : 0.0);
    double sum = weight * kUnit + kWhole;
    int64_t bits, zero;
    std::memcpy(&bits, &sum, sizeof bits);
    std::memcpy(&zero, &kWhole, sizeof zero);
    total += bits - zero;
  }
  return total;
}

// Rotates the first 2 * half values of a head: the pair is (i, i + half), the Hugging Face layout.
static void rope_head(float* x, const float* cos, const float* sin, int half) {
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    F a = fload(x + i), b = fload(x + half + i), c = fload(cos + i), s = fload(sin + i);
    fstore(x + i, fnma(b, s, mul(a, c)));
    fstore(x + half + i, fma(a, s, mul(b, c)));
  }
  for (; i < half; ++i) {
    float a = x[i], b = x[half + i];
    x[i] = std::fmaf(-b, sin[i], a * cos[i]);
    x[half + i] = std::fmaf(a, sin[i], b * cos[i]);
  }
}

// 16 floats to int8 with an f16 scale.
static inline void quantize16(F x, int8_t* q, uint16_t* scale) {
  float top = fhmax(fabs16(x));
  *scale = float_to_half(top / 127.0f);
  float s = half_to_float(*scale);
  s8store(q, toint(fmin(fmax(mul(x, fset(s > 0 ? 1.0f / s : 0.0f)), fset(-127.0f)), fset(127.0f))));
}

// 32 floats to 4-bit numbers with an f16 scale, which makes the value furthest from 0 a -8.
static inline void quantize32(F low, F high, int32_t* q, uint16_t* scale) {
  float most = fhmax(fmax(low, high)), least = -fhmax(fmax(sub(fzero(), low), sub(fzero(), high)));
  *scale = float_to_half((-least > most ? least : most) / -8.0f);
  float s = half_to_float(*scale);
  F inverse = fset(s == 0 ? 0.0f : 1.0f / s);
  istore(q, toint(fmin(fmax(mul(low, inverse), fset(-8.0f)), fset(7.0f))));
  istore(q + 16, toint(fmin(fmax(mul(high, inverse), fset(-8.0f)), fset(7.0f))));
}

// Two 4-bit numbers in a byte, as `nibbles` (attention.h) reads them.
static inline int8_t nibble_pair(int32_t low, int32_t high) { return int8_t(high * 16 + low + 8); }

// A page of the cache, of one layer and KV head: K in tiles of 16 positions [tile][dim][16], V in rows [position][dim].
// int8 keeps one f16 scale for 16 dims: K scales [tile][dim / 16][16], V scales [position][dim / 16]. 4 bits keep one for 32, in the
// same places; a byte has dims d and d + 1 of a key, d and d + 16 of a value.
static void append_key(const HeadCache& c, int position, const float* k) {
  size_t tile = size_t(position / 16) * c.head_dim * 16 + position % 16;
  if (c.keys == Kept::F16)
    for (int d = 0; d < c.head_dim; d += 16) {
      uint16_t h[16];
      hstore(h, fload(k + d));
      uint16_t* to = static_cast<uint16_t*>(c.k) + tile + size_t(d) * 16;
      for (int i = 0; i < 16; ++i) to[size_t(i) * 16] = h[i];
    }
  if (c.keys == Kept::INT8)
    for (int d = 0; d < c.head_dim; d += kInt8Group) {
      int8_t b[16];
      quantize16(fload(k + d), b, c.k_scale + (size_t(position / 16) * (c.head_dim / 16) + d / 16) * 16 + position % 16);
      int8_t* to = static_cast<int8_t*>(c.k) + tile + size_t(d) * 16;
      for (int i = 0; i < 16; ++i) to[size_t(i) * 16] = b[i];
    }
  if (c.keys == Kept::INT4)
    for (int d = 0; d < c.head_dim; d += kInt4Group) {
      int32_t q[32];
      size_t at = (size_t(position / 16) * (c.head_dim / kInt4Group) + d / kInt4Group) * 16 + position % 16;
      quantize32(fload(k + d), fload(k + d + 16), q, c.k_scale + at);
      int8_t* to = static_cast<int8_t*>(c.k) + (size_t(position / 16) * c.head_dim + d) * 8 + position % 16;
      for (int i = 0; i < 16; ++i) to[size_t(i) * 16] = nibble_pair(q[2 * i], q[2 * i + 1]);
    }
}

static void append_value(const HeadCache& c, int position, const float* v) {
  size_t row = size_t(position) * c.head_dim;
  if (c.values == Kept::F16)
    for (int d = 0; d < c.head_dim; d += 16) hstore(static_cast<uint16_t*>(c.v) + row + d, fload(v + d));
  if (c.values == Kept::INT8)
    for (int d = 0; d < c.head_dim; d += kInt8Group)
      quantize16(fload(v + d), static_cast<int8_t*>(c.v) + row + d, c.v_scale + (row + d) / kInt8Group);
  if (c.values == Kept::INT4)
    for (int d = 0; d < c.head_dim; d += kInt4Group) {
      int32_t q[32];
      quantize32(fload(v + d), fload(v + d + 16), q, c.v_scale + (row + d) / kInt4Group);
      int8_t* to = static_cast<int8_t*>(c.v) + (row + d) / 2;
      for (int i = 0; i < 16; ++i) to[i] = nibble_pair(q[i], q[i + 16]);
    }
}

// The largest power of two that divides a head's width.
static inline int spread_block(int head_dim) { return head_dim & -head_dim; }

// The Hadamard transform of each block, unscaled: sums of all values with all patterns of signs. A few large dims of a key, which
// 4 bits cannot hold beside small ones, become a part of every dim; products of a query and a key that both went through it are those
// of before, times the block's size.
static void spread(float* x, int head_dim) {
  int block = spread_block(head_dim);
  for (float* end = x + head_dim; x < end; x += block)
    for (int half = 1; half < block; half *= 2)
      for (int i = 0; i < block; i += 2 * half)
        for (int j = i; j < i + half; ++j) {
          float a = x[j], b = x[j + half];
          x[j] = a + b, x[j + half] = a - b;
        }
}

// One token: optional qk-norm, RoPE on q and k, q scaled for attention, k and v into the cache at its place.
static void rope_append_token(float* row, const AttentionShape& s, const float* cos, const float* sin, const Place& place,
                              const HeadPages* caches) {
  float* k = row + size_t(s.num_heads) * s.head_dim;
  float* v = k + size_t(s.num_kv_heads) * s.head_dim;
  bool spreads = caches[0].first.keys == Kept::INT4;
  float scale = spreads ? s.scale / float(spread_block(s.head_dim)) : s.scale;
  for (int h = 0; h < s.num_heads; ++h) {
    float* q = row + size_t(h) * s.head_dim;
    if (s.q_norm) rmsnorm_row(q, s.q_norm, s.head_dim, s.eps, q);
    rope_head(q, cos, sin, s.rope_dim / 2);
    if (spreads) spread(q, s.head_dim);
    for (int d = 0; d < s.head_dim; d += 16) fstore(q + d, mul(fload(q + d), fset(scale)));
  }
  for (int h = 0; h < s.num_kv_heads; ++h, k += s.head_dim, v += s.head_dim) {
    if (s.k_norm) rmsnorm_row(k, s.k_norm, s.head_dim, s.eps, k);
    rope_head(k, cos, sin, s.rope_dim / 2);
    if (spreads) spread(k, s.head_dim);
    HeadCache page = caches[h].at(place.pages[place.position / kPage]);
    append_key(page, place.position % kPage, k);
    append_value(page, place.position % kPage, v);
  }
}
