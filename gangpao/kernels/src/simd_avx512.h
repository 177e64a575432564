// The SIMD layer for AVX-512 (F, BW, VL, DQ) with VNNI: 16 lanes are one register, a dot product one instruction.
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

using F = __m512;
using I = __m512i;
struct B { __m512i v; };

constexpr int kTokenTile = 8;
constexpr int kQueryTile = 8;
constexpr int kPlaces = 1;     // places in memory that one token's weights are read from at once

static inline float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
static inline uint16_t float_to_half(float f) { return uint16_t(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)); }

static inline F fset(float x) { return _mm512_set1_ps(x); }
static inline F fzero() { return _mm512_setzero_ps(); }
static inline F fload(const float* p) { return _mm512_loadu_ps(p); }
static inline void fstore(float* p, F a) { _mm512_storeu_ps(p, a); }
static inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline F hload(const uint16_t* p) { return _mm512_cvtph_ps(load256(p)); }
static inline void hstore(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
static inline F bf16load(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16));
}
static inline void bf16store(uint16_t* p, F a) {  // to the nearest, halves to the even one
  __m512i u = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  u = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(u));
}
static inline F s8load(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load128(p))); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
static inline F fmax(F a, F b) { return _mm512_max_ps(a, b); }
static inline F fmin(F a, F b) { return _mm512_min_ps(a, b); }
static inline F fabs16(F a) { return _mm512_abs_ps(a); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
static inline F tofloat(I a) { return _mm512_cvtepi32_ps(a); }
static inline I toint(F a) { return _mm512_cvtps_epi32(a); }
static inline F pow2(I n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)); }
static inline I izero() { return _mm512_setzero_si512(); }
static inline I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
static inline I imul(I a, I b) { return _mm512_mullo_epi32(a, b); }
static inline void istore(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
static inline I ishift(I a, int n) { return _mm512_srai_epi32(a, unsigned(n)); }
static inline I iset(int32_t x) { return _mm512_set1_epi32(x); }
static inline I unsigned_pairs(const uint8_t* p) { return _mm512_cvtepu8_epi16(load256(p)); }
static inline I signed_pairs(const int8_t* p) { return _mm512_cvtepi8_epi16(load256(p)); }
// Pairs whose bytes are a scale of 6 bits with the lowest 2 of a minimum above it; the other 4 are in a nibble of `high`.
static inline I six_bit_scales(const uint8_t* p) { return _mm512_and_si512(unsigned_pairs(p), _mm512_set1_epi16(63)); }
static inline I six_bit_minima(const uint8_t* low, const uint8_t* high, bool upper) {
  I h = unsigned_pairs(high);
  h = upper ? _mm512_srli_epi16(h, 2) : _mm512_slli_epi16(h, 2);
  return _mm512_or_si512(_mm512_srli_epi16(unsigned_pairs(low), 6), _mm512_and_si512(h, _mm512_set1_epi16(60)));
}
static inline I low_nibbles(I pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi16(15)); }
static inline I high_nibbles(I pairs) { return _mm512_srli_epi16(pairs, 4); }
static inline I firsts(I pairs) { return _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16); }
static inline I seconds(I pairs) { return _mm512_srai_epi32(pairs, 16); }
struct One {};
static inline I add_pairs(I sum, I w, int32_t x) { return _mm512_dpwssd_epi32(sum, w, _mm512_set1_epi32(x)); }
static inline I load_pairs(const int16_t* p) { return _mm512_loadu_si512(p); }
static inline I dot_pairs(I sum, I w, I x) { return _mm512_dpwssd_epi32(sum, w, x); }
static inline void s16store(int16_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a)); }
static inline I iload(const int32_t* p) { return _mm512_loadu_si512(p); }
static inline void s8store(int8_t* p, I a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }
static inline int isum(I a) { return _mm512_reduce_add_epi32(a); }
static inline __m256 lower(F a) { return _mm512_castps512_ps256(a); }
static inline __m256 upper(F a) { return _mm512_extractf32x8_ps(a, 1); }
static inline float fsum(F a) {
  __m256 s = _mm256_add_ps(lower(a), upper(a));
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline float fhmax(F a) { return _mm512_reduce_max_ps(a); }
static inline F fill_from(F a, int first, float x) {
  __mmask16 keep = first >= 16 ? __mmask16(0xffff) : __mmask16((1u << (first < 0 ? 0 : first)) - 1);
  return _mm512_mask_mov_ps(_mm512_set1_ps(x), keep, a);
}

static inline B bload(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void bstore(uint8_t* p, B a) { _mm512_storeu_si512(p, a.v); }
static inline B band(B a, uint8_t m) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(char(m)))}; }
static inline B bor(B a, B b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline B bxor(B a, uint8_t m) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(char(m)))}; }
// (a & mask) ^ x, and the bits of a where mask has ones, else those of b: an instruction each.
static inline B band_xor(B a, uint8_t mask, uint8_t x) {
  return {_mm512_ternarylogic_epi32(a.v, _mm512_set1_epi8(char(mask)), _mm512_set1_epi8(char(x)), 0x6a)};
}
static inline B bmix(B a, B b, uint8_t mask) { return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(char(mask)), a.v, b.v, 0xca)}; }
static inline B bsub(B a, uint8_t m) { return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(char(m)))}; }
template <int N> static inline B shr(B a) { return {_mm512_srli_epi16(a.v, N)}; }
template <int N> static inline B shl(B a) { return {_mm512_slli_epi16(a.v, N)}; }

// vpdpbusd wants unsigned weights, which the table has.
static inline B coded(B places) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kCodes))), places.v)};
}
constexpr bool kBiasedBytes = true;  // whether bytes of values in two planes come as w + 128
constexpr bool needs_zero(Values v) { return !are_bytes(v); }

template <Values V>
struct Dot {
  I a;
  // vpdpbusd wants unsigned weights: signed bytes become w + 128, and 128 is taken off like any other zero point.
  void start(int32_t isum, int zero) { a = _mm512_set1_epi32((are_bytes(V) ? -128 : -zero) * isum); }
  template <int K> void group(B w, const int8_t* x) {
    int32_t x4;
    std::memcpy(&x4, x, 4);
    if constexpr (V == Values::S8) w = bxor(w, 0x80);
    a = _mm512_dpbusd_epi32(a, w.v, _mm512_set1_epi32(x4));
  }
  I total() const { return a; }
};

template <Values V, int LIFT>
struct Sum {
  I total, part;
  void start() { total = izero(); }
  template <int K, int N, class Scale> void group(B w, const int8_t* x, Scale scale) {
    static_assert(!are_bytes(V), "no K style has signed bytes");
    int32_t x4;
    std::memcpy(&x4, x, 4);
    part = _mm512_dpbusd_epi32(K == 0 ? izero() : part, w.v, _mm512_set1_epi32(x4));
    if constexpr (K == N - 1) add_scaled(scale);
  }
  void add_scaled(I scale) { total = iadd(total, imul(part, scale)); }
  void add_scaled(One) { total = iadd(total, part); }
};
