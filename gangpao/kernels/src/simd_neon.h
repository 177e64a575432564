// The SIMD layer for ARM's NEON: 16 lanes are four registers. The same file is compiled three times: for armv8.0, where products of
// bytes are summed in int16 as long as they fit (chain()) and then widened; with dotprod (sdot); and with dotprod and i8mm
// (many_neon.h). Weights are signed bytes for all of them: what has 6 bits or less is one already.
//
// Pairs of int16 (unsigned_pairs and so on) are opaque: a and b hold the first of each pair for the 16 rows, c and d the second,
// which is how ld2 reads them and how multiplications by an element want them.
#pragma once
#include <arm_neon.h>
#include <cstdint>
#include <cstring>

struct F { float32x4_t a, b, c, d; };
struct I { int32x4_t a, b, c, d; };
struct B { uint8x16_t a, b, c, d; };

// Without dotprod a tile's int16 sums take eight registers a token: prefill of Q4_K takes 63 instructions for 256 weights with 2 tokens,
// 72 with 1 and 100 with 4, which spill.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int kTokenTile = 4;
#else
constexpr int kTokenTile = 2;
#endif
constexpr int kQueryTile = 4;
constexpr int kPlaces = 1;  // places in memory that one token's weights are read from at once; more are not measured

#define ONE_BY_ONE(T, op) T{op(x.a), op(x.b), op(x.c), op(x.d)}
#define TWO_BY_TWO(T, op) T{op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d)}
#define WITH_EACH(T, op, y) T{op(x.a, y), op(x.b, y), op(x.c, y), op(x.d, y)}

static inline float half_to_float(uint16_t h) {
  __fp16 x;
  std::memcpy(&x, &h, 2);
  return float(x);
}
static inline uint16_t float_to_half(float f) {
  __fp16 x = static_cast<__fp16>(f);
  uint16_t h;
  std::memcpy(&h, &x, 2);
  return h;
}

static inline F fset(float x) { float32x4_t v = vdupq_n_f32(x); return {v, v, v, v}; }
static inline F fzero() { return fset(0.0f); }
static inline F fload(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
static inline void fstore(float* p, F x) { vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d); }
static inline F hload(const uint16_t* p) {
  float16x8_t l = vreinterpretq_f16_u16(vld1q_u16(p)), h = vreinterpretq_f16_u16(vld1q_u16(p + 8));
  return {vcvt_f32_f16(vget_low_f16(l)), vcvt_high_f32_f16(l), vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
static inline void hstore(uint16_t* p, F x) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
  vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d)));
}
static inline F bf16load(const uint16_t* p) {
  uint16x8_t l = vld1q_u16(p), h = vld1q_u16(p + 8);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(l), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(l, 16)),
          vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(h, 16))};
}
static inline uint16x4_t to_bf16(float32x4_t a) {
  uint32x4_t u = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  return vshrn_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
}
static inline void bf16store(uint16_t* p, F x) {  // to the nearest, halves to the even one
  vst1q_u16(p, vcombine_u16(to_bf16(x.a), to_bf16(x.b)));
  vst1q_u16(p + 8, vcombine_u16(to_bf16(x.c), to_bf16(x.d)));
}
static inline I widened(int16x8_t l, int16x8_t h) {
  return {vmovl_s16(vget_low_s16(l)), vmovl_high_s16(l), vmovl_s16(vget_low_s16(h)), vmovl_high_s16(h)};
}
static inline F tofloat(I x) { return ONE_BY_ONE(F, vcvtq_f32_s32); }
static inline F s8load(const int8_t* p) {
  int8x16_t x = vld1q_s8(p);
  return tofloat(widened(vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)));
}
static inline F add(F x, F y) { return TWO_BY_TWO(F, vaddq_f32); }
static inline F sub(F x, F y) { return TWO_BY_TWO(F, vsubq_f32); }
static inline F mul(F x, F y) { return TWO_BY_TWO(F, vmulq_f32); }
static inline F div(F x, F y) { return TWO_BY_TWO(F, vdivq_f32); }
// fmax and fmin of ARM treat NaN and -0 in ways of their own; x86 takes the second where the first is not larger (smaller).
static inline float32x4_t larger(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
static inline float32x4_t smaller(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
static inline F fmax(F x, F y) { return TWO_BY_TWO(F, larger); }
static inline F fmin(F x, F y) { return TWO_BY_TWO(F, smaller); }
static inline F fabs16(F x) { return ONE_BY_ONE(F, vabsq_f32); }
static inline F fma(F x, F y, F z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)}; }
static inline F fnma(F x, F y, F z) { return {vfmsq_f32(z.a, x.a, y.a), vfmsq_f32(z.b, x.b, y.b), vfmsq_f32(z.c, x.c, y.c), vfmsq_f32(z.d, x.d, y.d)}; }
static inline I toint(F x) { return ONE_BY_ONE(I, vcvtnq_s32_f32); }
static inline I iset(int32_t x) { int32x4_t v = vdupq_n_s32(x); return {v, v, v, v}; }
static inline I izero() { return iset(0); }
static inline I iadd(I x, I y) { return TWO_BY_TWO(I, vaddq_s32); }
static inline I imul(I x, I y) { return TWO_BY_TWO(I, vmulq_s32); }
static inline I multiplied(I sum, I x, I y) {
  return {vmlaq_s32(sum.a, x.a, y.a), vmlaq_s32(sum.b, x.b, y.b), vmlaq_s32(sum.c, x.c, y.c), vmlaq_s32(sum.d, x.d, y.d)};
}
static inline I ishift(I x, int n) { return WITH_EACH(I, vshlq_s32, vdupq_n_s32(-n)); }
static inline F pow2(I n) {
  int32x4_t b = vdupq_n_s32(127);
  auto power = [b](int32x4_t x) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(x, b), 23)); };
  return {power(n.a), power(n.b), power(n.c), power(n.d)};
}

static inline I as_pairs(int16x8_t a, int16x8_t b, int16x8_t c, int16x8_t d) {
  return {vreinterpretq_s32_s16(a), vreinterpretq_s32_s16(b), vreinterpretq_s32_s16(c), vreinterpretq_s32_s16(d)};
}
static inline int16x8_t words(int32x4_t x) { return vreinterpretq_s16_s32(x); }
static inline I unsigned_pairs(uint8x16_t first, uint8x16_t second) {
  auto low = [](uint8x16_t v) { return vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(v))); };
  auto high = [](uint8x16_t v) { return vreinterpretq_s16_u16(vmovl_high_u8(v)); };
  return as_pairs(low(first), high(first), low(second), high(second));
}
static inline I unsigned_pairs(const uint8_t* p) {
  uint8x16x2_t x = vld2q_u8(p);
  return unsigned_pairs(x.val[0], x.val[1]);
}
static inline I six_bit_scales(const uint8_t* p) {
  uint8x16x2_t x = vld2q_u8(p);
  uint8x16_t bits = vdupq_n_u8(63);
  return unsigned_pairs(vandq_u8(x.val[0], bits), vandq_u8(x.val[1], bits));
}
static inline I six_bit_minima(const uint8_t* low, const uint8_t* high, bool upper) {
  uint8x16x2_t l = vld2q_u8(low), h = vld2q_u8(high);
  int8x16_t shift = vdupq_n_s8(upper ? -2 : 2);
  auto minimum = [shift](uint8x16_t l, uint8x16_t h) {
    return vorrq_u8(vshrq_n_u8(l, 6), vandq_u8(vshlq_u8(h, shift), vdupq_n_u8(60)));
  };
  return unsigned_pairs(minimum(l.val[0], h.val[0]), minimum(l.val[1], h.val[1]));
}
static inline I signed_pairs(const int8_t* p) {
  int8x16x2_t x = vld2q_s8(p);
  return as_pairs(vmovl_s8(vget_low_s8(x.val[0])), vmovl_high_s8(x.val[0]), vmovl_s8(vget_low_s8(x.val[1])), vmovl_high_s8(x.val[1]));
}
static inline I low_nibbles(I x) { return WITH_EACH(I, vandq_s32, vdupq_n_s32(0x000f000f)); }
static inline I high_nibbles(I x) {
  auto high = [](int32x4_t v) { return vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(v), 4)); };
  return ONE_BY_ONE(I, high);
}
static inline I firsts(I pairs) { return widened(words(pairs.a), words(pairs.b)); }
static inline I seconds(I pairs) { return widened(words(pairs.c), words(pairs.d)); }
struct One {};
static inline I add_pairs(I sum, I w, int32_t x) {
  int16x4_t v = vreinterpret_s16_s32(vdup_n_s32(x));
  int16x8_t a = words(w.a), b = words(w.b), c = words(w.c), d = words(w.d);
  sum.a = vmlal_lane_s16(vmlal_lane_s16(sum.a, vget_low_s16(a), v, 0), vget_low_s16(c), v, 1);
  sum.b = vmlal_high_lane_s16(vmlal_high_lane_s16(sum.b, a, v, 0), c, v, 1);
  sum.c = vmlal_lane_s16(vmlal_lane_s16(sum.c, vget_low_s16(b), v, 0), vget_low_s16(d), v, 1);
  sum.d = vmlal_high_lane_s16(vmlal_high_lane_s16(sum.d, b, v, 0), d, v, 1);
  return sum;
}
static inline I load_pairs(const int16_t* p) {
  int16x8x2_t x = vld2q_s16(p), y = vld2q_s16(p + 16);
  return as_pairs(x.val[0], y.val[0], x.val[1], y.val[1]);
}
static inline I dot_pairs(I sum, I w, I x) {
  auto low = [](int32x4_t sum, int32x4_t w, int32x4_t x) { return vmlal_s16(sum, vget_low_s16(words(w)), vget_low_s16(words(x))); };
  auto high = [](int32x4_t sum, int32x4_t w, int32x4_t x) { return vmlal_high_s16(sum, words(w), words(x)); };
  return {low(low(sum.a, w.a, x.a), w.c, x.c), high(high(sum.b, w.a, x.a), w.c, x.c),
          low(low(sum.c, w.b, x.b), w.d, x.d), high(high(sum.d, w.b, x.b), w.d, x.d)};
}
static inline void s16store(int16_t* p, I x) {
  vst1q_s16(p, vuzp1q_s16(words(x.a), words(x.b))), vst1q_s16(p + 8, vuzp1q_s16(words(x.c), words(x.d)));
}
static inline I iload(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}; }
static inline void istore(int32_t* p, I x) { vst1q_s32(p, x.a), vst1q_s32(p + 4, x.b), vst1q_s32(p + 8, x.c), vst1q_s32(p + 12, x.d); }
static inline void s8store(int8_t* p, I x) {
  int16x8_t l = vuzp1q_s16(words(x.a), words(x.b)), h = vuzp1q_s16(words(x.c), words(x.d));
  vst1q_s8(p, vuzp1q_s8(vreinterpretq_s8_s16(l), vreinterpretq_s8_s16(h)));
}
static inline int isum(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
// Upper half onto lower half: vaddvq_f32 would add neighbours first, which is another order.
static inline float fsum(F x) {
  float32x4_t s = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  return vpadds_f32(vadd_f32(vget_low_f32(s), vget_high_f32(s)));
}
static inline float fhmax(F x) {
  float32x4_t s = larger(larger(x.a, x.c), larger(x.b, x.d));
  s = larger(s, vextq_f32(s, s, 2));
  return vgetq_lane_f32(larger(s, vdupq_laneq_f32(s, 1)), 0);
}
static inline F fill_from(F x, int first, float value) {
  const int32_t numbers[4] = {0, 1, 2, 3};
  int32x4_t lane = vld1q_s32(numbers), end = vdupq_n_s32(first);
  float32x4_t v = vdupq_n_f32(value);
  auto keep = [&](float32x4_t old, int begin) { return vbslq_f32(vcltq_s32(vaddq_s32(lane, vdupq_n_s32(begin)), end), old, v); };
  return {keep(x.a, 0), keep(x.b, 4), keep(x.c, 8), keep(x.d, 12)};
}

static inline B bload(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
static inline void bstore(uint8_t* p, B x) { vst1q_u8(p, x.a), vst1q_u8(p + 16, x.b), vst1q_u8(p + 32, x.c), vst1q_u8(p + 48, x.d); }
static inline B band(B x, uint8_t m) { return WITH_EACH(B, vandq_u8, vdupq_n_u8(m)); }
static inline B bor(B x, B y) { return TWO_BY_TWO(B, vorrq_u8); }
static inline B bxor(B x, uint8_t m) { return WITH_EACH(B, veorq_u8, vdupq_n_u8(m)); }
static inline B bsub(B x, uint8_t m) { return WITH_EACH(B, vsubq_u8, vdupq_n_u8(m)); }
// Here shifts stay within their bytes, so a mask of all the bits that are left is none.
template <int N> struct ShiftedDown : B {};
template <int N> static inline ShiftedDown<N> shr(B x) {
  if constexpr (N == 0) return {x};
  else return {{vshrq_n_u8(x.a, N), vshrq_n_u8(x.b, N), vshrq_n_u8(x.c, N), vshrq_n_u8(x.d, N)}};
}
template <int N> static inline B band(ShiftedDown<N> x, uint8_t m) {
  return (0xff >> N & ~m) == 0 ? static_cast<B>(x) : band(static_cast<B>(x), m);
}
template <int N> static inline B shl(B x) { return {vshlq_n_u8(x.a, N), vshlq_n_u8(x.b, N), vshlq_n_u8(x.c, N), vshlq_n_u8(x.d, N)}; }

static inline B band_xor(B x, uint8_t mask, uint8_t y) { return bxor(band(x, mask), y); }
static inline B bmix(B x, B y, uint8_t mask) { return bor(band(x, mask), band(y, uint8_t(~mask))); }
static inline B coded(B x) {
  uint8x16_t table = veorq_u8(vld1q_u8(kCodes), vdupq_n_u8(0x80));
  auto look = [table](uint8x16_t places) { return vqtbl1q_u8(table, places); };
  return ONE_BY_ONE(B, look);
}
constexpr bool is_signed(Values v) { return are_bytes(v) || v == Values::IQ4; }
constexpr bool kBiasedBytes = false;  // whether bytes of values in two planes come as w + 128
constexpr bool needs_zero(Values v) { return !is_signed(v); }

static inline int8x16_t signed_bytes(uint8x16_t x) { return vreinterpretq_s8_u8(x); }

#undef ONE_BY_ONE
#undef TWO_BY_TWO
#undef WITH_EACH

// Group K of a product is the (K % 4)-th of 16 columns, so `x` is four activations of 16 that lie in a register together: the
// compiler loads them once for the four groups.
#if defined(__ARM_FEATURE_DOTPROD)

template <int LANE>
static inline I dot4(I sum, B w, int8x16_t x) {
  return {vdotq_laneq_s32(sum.a, signed_bytes(w.a), x, LANE), vdotq_laneq_s32(sum.b, signed_bytes(w.b), x, LANE),
          vdotq_laneq_s32(sum.c, signed_bytes(w.c), x, LANE), vdotq_laneq_s32(sum.d, signed_bytes(w.d), x, LANE)};
}

template <Values V>
struct Dot {
  I a;
  void start(int32_t isum, int zero) { a = iset(needs_zero(V) ? -zero * isum : 0); }
  template <int K> void group(B w, const int8_t* x) { a = dot4<K % 4>(a, w, vld1q_s8(x - 4 * (K % 4))); }
  I total() const { return a; }
};

template <Values V, int LIFT>
struct Sum {
  I total, part;
  void start() { total = izero(); }
  template <int K, int N, class Scale> void group(B w, const int8_t* x, Scale scale) {
    if constexpr (K == 0) part = izero();
    part = dot4<K % 4>(part, w, vld1q_s8(x - 4 * (K % 4)));
    if constexpr (K == N - 1) add_scaled(scale);
  }
  void add_scaled(I scale) { total = multiplied(total, part, scale); }
  void add_scaled(One) { total = iadd(total, part); }
};

#else

// The largest weight, with `lift` zeros below it.
constexpr int largest(Values v, int lift) { return is_signed(v) ? 128 : ((1 << unpacked_bits(v)) - 1) << lift; }
// How many groups of products int16 holds: two neighbours added up (short weights), or each for itself.
constexpr int together(Values v, int lift) { return 32767 / (largest(v, lift) * 127 * 2); }
constexpr int alone(Values v, int lift) { return 32767 / (largest(v, lift) * 127); }

// Products of weights and activations of up to `chain` groups, in int16: of rows 0 and 1, 2 and 3, and so on, four columns each.
struct Products {
  int16x8_t v[8];
  template <bool FIRST> void add(B w, const int8_t* x, int lane) {
    int8x16_t all = vld1q_s8(x - 4 * lane);
    int32x4_t four = lane == 0 ? vdupq_laneq_s32(vreinterpretq_s32_s8(all), 0) : lane == 1 ? vdupq_laneq_s32(vreinterpretq_s32_s8(all), 1)
                   : lane == 2 ? vdupq_laneq_s32(vreinterpretq_s32_s8(all), 2) : vdupq_laneq_s32(vreinterpretq_s32_s8(all), 3);
    int8x16_t y = vreinterpretq_s8_s32(four);
    const int8x16_t weights[4] = {signed_bytes(w.a), signed_bytes(w.b), signed_bytes(w.c), signed_bytes(w.d)};
    for (int i = 0; i < 4; ++i) {
      if constexpr (FIRST) {
        v[2 * i] = vmull_s8(vget_low_s8(weights[i]), vget_low_s8(y));
        v[2 * i + 1] = vmull_high_s8(weights[i], y);
      } else {
        v[2 * i] = vmlal_s8(v[2 * i], vget_low_s8(weights[i]), vget_low_s8(y));
        v[2 * i + 1] = vmlal_high_s8(v[2 * i + 1], weights[i], y);
      }
    }
  }
};

// The int32 sums of 16 rows; where neighbours do not fit into int16 together, two sums a row that come together at the end.
template <Values V, int LIFT, int N>
struct Wide {
  static constexpr bool short_weights = together(V, LIFT) >= 4;
  static constexpr int fits = short_weights ? together(V, LIFT) : alone(V, LIFT);
  static constexpr int chain = fits >= N ? N : fits >= 8 ? 8 : fits >= 4 ? 4 : fits >= 2 ? 2 : 1;
  Products p;
  int32x4_t sum[short_weights ? 4 : 8];
  template <int K> void group(B w, const int8_t* x) {
    p.template add<K % chain == 0>(w, x, K % 4);
    if constexpr (K % chain == chain - 1 || K == N - 1)
      for (int i = 0; i < (short_weights ? 4 : 8); ++i) {
        int16x8_t v;
        if constexpr (short_weights) v = vpaddq_s16(p.v[2 * i], p.v[2 * i + 1]);
        else v = p.v[i];
        if constexpr (K < chain) sum[i] = vpaddlq_s16(v);
        else sum[i] = vpadalq_s16(sum[i], v);
      }
  }
  I get() const {
    if constexpr (short_weights) return {sum[0], sum[1], sum[2], sum[3]};
    else
      return {vpaddq_s32(sum[0], sum[1]), vpaddq_s32(sum[2], sum[3]), vpaddq_s32(sum[4], sum[5]), vpaddq_s32(sum[6], sum[7])};
  }
};

// All 8 groups of a block.
template <Values V>
struct Dot {
  Wide<V, 0, 8> wide;
  int32_t first;
  void start(int32_t isum, int zero) { first = needs_zero(V) ? -zero * isum : 0; }
  template <int K> void group(B w, const int8_t* x) { wide.template group<K>(w, x); }
  I total() const { return needs_zero(V) ? iadd(wide.get(), iset(first)) : wide.get(); }
};

template <Values V, int LIFT>
struct Sum {
  I total;
  Wide<V, LIFT, 4> four;
  Wide<V, LIFT, 8> eight;
  Wide<V, LIFT, 16> sixteen;
  void start() { total = izero(); }
  template <int K, int N, class Scale> void group(B w, const int8_t* x, Scale scale) {
    if constexpr (N == 4) add_group<K, N>(four, w, x, scale);
    else if constexpr (N == 8) add_group<K, N>(eight, w, x, scale);
    else add_group<K, N>(sixteen, w, x, scale);
  }
  template <int K, int N, class Any> void add_group(Any& wide, B w, const int8_t* x, I scale) {
    wide.template group<K>(w, x);
    if constexpr (K == N - 1) total = multiplied(total, wide.get(), scale);
  }
  template <int K, int N, class Any> void add_group(Any& wide, B w, const int8_t* x, One) {
    wide.template group<K>(w, x);
    if constexpr (K == N - 1) total = iadd(total, wide.get());
  }
};

#endif
