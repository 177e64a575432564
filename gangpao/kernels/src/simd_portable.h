// The SIMD layer in plain C++: 16 lanes as arrays, for any machine, and the definition the others must equal.
// Every other simd_*.h has the same names; nothing outside these files knows an instruction set.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct F { float v[16]; };
struct I { int32_t v[16]; };
struct B { uint8_t v[64]; };

constexpr int kTokenTile = 4;   // tokens at once in the matrix product
constexpr int kQueryTile = 4;   // query rows at once in attention
constexpr int kPlaces = 1;     // places in memory that one token's weights are read from at once

#define LANES for (int i = 0; i < 16; ++i)

static inline float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023, u;
  if (e == 31) u = sign | 0x7f800000 | m << 13;
  else if (e) u = sign | (e + 112) << 23 | m << 13;
  else if (!m) u = sign;
  else {
    int s = 0;
    while (!(m & 1024)) m <<= 1, ++s;
    u = sign | uint32_t(113 - s) << 23 | (m & 1023) << 13;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
static inline uint16_t float_to_half(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  uint32_t sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (a >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (a < 0x38800000) {  // below the smallest normal half: let float addition round at 2^-24
    float g;
    std::memcpy(&g, &a, 4);
    g += 0.5f;
    std::memcpy(&a, &g, 4);
    return uint16_t(sign | (a - 0x3f000000));
  }
  a += 0xc8000fff + ((a >> 13) & 1);
  return uint16_t(sign | a >> 13);
}

static inline F fzero() { return F{}; }
static inline F fset(float x) { F r; LANES r.v[i] = x; return r; }
static inline F fload(const float* p) { F r; std::memcpy(r.v, p, 64); return r; }
static inline void fstore(float* p, F a) { std::memcpy(p, a.v, 64); }
static inline F hload(const uint16_t* p) { F r; LANES r.v[i] = half_to_float(p[i]); return r; }
static inline void hstore(uint16_t* p, F a) { LANES p[i] = float_to_half(a.v[i]); }
static inline F bf16load(const uint16_t* p) {
  F r;
  LANES { uint32_t u = uint32_t(p[i]) << 16; std::memcpy(&r.v[i], &u, 4); }
  return r;
}
static inline void bf16store(uint16_t* p, F a) {  // to the nearest, halves to the even one
  LANES {
    uint32_t u;
    std::memcpy(&u, &a.v[i], 4);
    p[i] = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
}
static inline F s8load(const int8_t* p) { F r; LANES r.v[i] = float(p[i]); return r; }
static inline F add(F a, F b) { LANES a.v[i] += b.v[i]; return a; }
static inline F sub(F a, F b) { LANES a.v[i] -= b.v[i]; return a; }
static inline F mul(F a, F b) { LANES a.v[i] *= b.v[i]; return a; }
static inline F div(F a, F b) { LANES a.v[i] /= b.v[i]; return a; }
static inline F fmax(F a, F b) { LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F fmin(F a, F b) { LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F fabs16(F a) { LANES a.v[i] = std::fabs(a.v[i]); return a; }
static inline F fma(F a, F b, F c) { LANES c.v[i] = std::fmaf(a.v[i], b.v[i], c.v[i]); return c; }
static inline F fnma(F a, F b, F c) { LANES c.v[i] = std::fmaf(-a.v[i], b.v[i], c.v[i]); return c; }
static inline F tofloat(I a) { F r; LANES r.v[i] = float(a.v[i]); return r; }
static inline I toint(F a) { I r; LANES r.v[i] = int32_t(std::nearbyintf(a.v[i])); return r; }  // to nearest, ties to even
static inline F pow2(I n) {  // 2^n for -126 <= n <= 127
  F r;
  LANES { int32_t u = (n.v[i] + 127) << 23; std::memcpy(&r.v[i], &u, 4); }
  return r;
}
static inline I izero() { return I{}; }
static inline I iadd(I a, I b) { LANES a.v[i] += b.v[i]; return a; }
static inline I imul(I a, I b) { LANES a.v[i] *= b.v[i]; return a; }
static inline void istore(int32_t* p, I a) { std::memcpy(p, a.v, 64); }
static inline I ishift(I a, int n) { LANES a.v[i] >>= n; return a; }
static inline I iset(int32_t x) { I r; LANES r.v[i] = x; return r; }
// Bytes [row][2] as the two int16 of each row's lane, and the products of such pairs with the two int16 of x.
static inline int32_t int16_pair(int a, int b) { return int32_t(uint32_t(a & 0xffff) | uint32_t(b) << 16); }
static inline I unsigned_pairs(const uint8_t* p) { I r; LANES r.v[i] = int16_pair(p[2 * i], p[2 * i + 1]); return r; }
static inline I signed_pairs(const int8_t* p) { I r; LANES r.v[i] = int16_pair(p[2 * i], p[2 * i + 1]); return r; }
// Pairs whose bytes are a scale of 6 bits with the lowest 2 of a minimum above it; the other 4 are in a nibble of `high`.
static inline I six_bit_scales(const uint8_t* p) { I r; LANES r.v[i] = int16_pair(p[2 * i] & 63, p[2 * i + 1] & 63); return r; }
static inline I six_bit_minima(const uint8_t* low, const uint8_t* high, bool upper) {
  auto minimum = [=](int at) { return low[at] >> 6 | (high[at] >> (upper ? 4 : 0) & 15) << 2; };
  I r;
  LANES r.v[i] = int16_pair(minimum(2 * i), minimum(2 * i + 1));
  return r;
}
static inline I low_nibbles(I pairs) { LANES pairs.v[i] &= 0x000f000f; return pairs; }
static inline I high_nibbles(I pairs) { LANES pairs.v[i] = pairs.v[i] >> 4 & 0x000f000f; return pairs; }
static inline I add_pairs(I sum, I w, int32_t x) {
  LANES sum.v[i] += int16_t(w.v[i] & 0xffff) * int16_t(x & 0xffff) + (w.v[i] >> 16) * (x >> 16);
  return sum;
}
static inline I load_pairs(const int16_t* p) { I r; LANES r.v[i] = int16_pair(p[2 * i], p[2 * i + 1]); return r; }
static inline I dot_pairs(I sum, I w, I x) {
  LANES sum.v[i] += int16_t(w.v[i] & 0xffff) * int16_t(x.v[i] & 0xffff) + (w.v[i] >> 16) * (x.v[i] >> 16);
  return sum;
}
static inline void s16store(int16_t* p, I a) { LANES p[i] = int16_t(a.v[i]); }
// The first and the second of each pair, as Sum multiplies with them.
static inline I firsts(I pairs) { LANES pairs.v[i] = int16_t(pairs.v[i] & 0xffff); return pairs; }
static inline I seconds(I pairs) { LANES pairs.v[i] >>= 16; return pairs; }
struct One {};  // the scale of styles that have none
static inline I iload(const int32_t* p) { I r; std::memcpy(r.v, p, 64); return r; }
// Stores 16 values in -127..127 as bytes.
static inline void s8store(int8_t* p, I a) { LANES p[i] = int8_t(a.v[i]); }
static inline int isum(I a) { int s = 0; LANES s += a.v[i]; return s; }
// The one order of reduction: 16 lanes to 8, 4, 2, 1, upper half onto lower half.
static inline float fsum(F a) {
  for (int w = 8; w; w >>= 1)
    for (int i = 0; i < w; ++i) a.v[i] += a.v[i + w];
  return a.v[0];
}
static inline float fhmax(F a) {
  float m = a.v[0];
  LANES m = m > a.v[i] ? m : a.v[i];
  return m;
}
// Lanes from `first` on become x.
static inline F fill_from(F a, int first, float x) { LANES a.v[i] = i < first ? a.v[i] : x; return a; }

static inline B bload(const uint8_t* p) { B r; std::memcpy(r.v, p, 64); return r; }
static inline void bstore(uint8_t* p, B a) { std::memcpy(p, a.v, 64); }
static inline B band(B a, uint8_t m) { for (auto& x : a.v) x &= m; return a; }
static inline B bor(B a, B b) { for (int i = 0; i < 64; ++i) a.v[i] |= b.v[i]; return a; }
static inline B bxor(B a, uint8_t m) { for (auto& x : a.v) x ^= m; return a; }
static inline B band_xor(B a, uint8_t mask, uint8_t x) { return bxor(band(a, mask), x); }
static inline B bmix(B a, B b, uint8_t mask) { return bor(band(a, mask), band(b, uint8_t(~mask))); }
static inline B bsub(B a, uint8_t m) { for (auto& x : a.v) x = uint8_t(x - m); return a; }
template <int N> static inline B shr(B a) { for (auto& x : a.v) x = uint8_t(x >> N); return a; }
template <int N> static inline B shl(B a) { for (auto& x : a.v) x = uint8_t(x << N); return a; }

static inline B coded(B places) { for (auto& x : places.v) x = kCodes[x]; return places; }
constexpr bool kBiasedBytes = false;  // whether bytes of values in two planes come as w + 128
// Whether products of such weights want their zero point taken off afterwards.
constexpr bool needs_zero(Values v) { return !are_bytes(v); }

// Sum over groups of weight bytes (16 rows x 4 columns) times 4 activations; `zero` times the activations' sum is taken off.
template <Values V>
struct Dot {
  I a;
  void start(int32_t isum, int zero) { int32_t z = -zero * isum; LANES a.v[i] = z; }
  template <int K> void group(B w, const int8_t* x) {
    for (int i = 0; i < 16; ++i)
      for (int c = 0; c < 4; ++c) {
        int q = are_bytes(V) ? int(int8_t(w.v[i * 4 + c])) : int(w.v[i * 4 + c]);
        a.v[i] += q * x[c];
      }
  }
  I total() const { return a; }
};

// The same sum over a superblock, in parts with an integer scale each: group K of the N groups of a part. `LIFT` bits of the weights
// are zero (lifted_bytes of unpack.h), which the total keeps.
template <Values V, int LIFT>
struct Sum {
  I total, part;
  void start() { total = izero(); }
  template <int K, int N, class Scale> void group(B w, const int8_t* x, Scale scale) {
    Dot<V> dot;
    if constexpr (K == 0) part = izero();
    dot.a = part;
    dot.template group<K>(w, x);
    part = dot.a;
    if constexpr (K == N - 1) add_scaled(scale);
  }
  void add_scaled(I scale) { total = iadd(total, imul(part, scale)); }
  void add_scaled(One) { total = iadd(total, part); }
};
#undef LANES
