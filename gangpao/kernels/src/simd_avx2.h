// The SIMD layer for AVX2 + FMA + F16C: 16 lanes are two registers. Without VNNI, products of bytes are summed in
// int16 as long as they fit (chain()), then widened: 4-bit weights give 8 * 2 * 15 * 127 = 30,480 < 32,768.
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

struct F { __m256 l, h; };
struct I { __m256i l, h; };
struct B { __m256i l, h; };

constexpr int kTokenTile = 4;
constexpr int kQueryTile = 4;
constexpr int kPlaces = 4;     // places in memory that one token's weights are read from at once

#define BOTH(T, op) T{op(a.l, b.l), op(a.h, b.h)}

static inline float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
static inline uint16_t float_to_half(float f) { return uint16_t(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)); }

static inline F fset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F fzero() { return fset(0.0f); }
static inline F fload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void fstore(float* p, F a) { _mm256_storeu_ps(p, a.l); _mm256_storeu_ps(p + 8, a.h); }
static inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline F hload(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
static inline void hstore(uint16_t* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.l, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.h, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
static inline F bf16load(const uint16_t* p) { return {bf16(load128(p)), bf16(load128(p + 8))}; }
static inline __m128i to_bf16(__m256 a) {
  __m256i u = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  u = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
}
static inline void bf16store(uint16_t* p, F a) {  // to the nearest, halves to the even one
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(a.l));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), to_bf16(a.h));
}
static inline F s8load(const int8_t* p) {
  __m128i x = load128(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
static inline F add(F a, F b) { return BOTH(F, _mm256_add_ps); }
static inline F sub(F a, F b) { return BOTH(F, _mm256_sub_ps); }
static inline F mul(F a, F b) { return BOTH(F, _mm256_mul_ps); }
static inline F div(F a, F b) { return BOTH(F, _mm256_div_ps); }
static inline F fmax(F a, F b) { return BOTH(F, _mm256_max_ps); }
static inline F fmin(F a, F b) { return BOTH(F, _mm256_min_ps); }
static inline F fabs16(F a) { F b = fset(-0.0f); return {_mm256_andnot_ps(b.l, a.l), _mm256_andnot_ps(b.h, a.h)}; }
static inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.l, b.l, c.l), _mm256_fmadd_ps(a.h, b.h, c.h)}; }
static inline F fnma(F a, F b, F c) { return {_mm256_fnmadd_ps(a.l, b.l, c.l), _mm256_fnmadd_ps(a.h, b.h, c.h)}; }
static inline F tofloat(I a) { return {_mm256_cvtepi32_ps(a.l), _mm256_cvtepi32_ps(a.h)}; }
static inline I toint(F a) { return {_mm256_cvtps_epi32(a.l), _mm256_cvtps_epi32(a.h)}; }
static inline F pow2(I n) {
  __m256i b = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.l, b), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.h, b), 23))};
}
static inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline I iadd(I a, I b) { return BOTH(I, _mm256_add_epi32); }
static inline I imul(I a, I b) { return BOTH(I, _mm256_mullo_epi32); }
static inline I ishift(I a, int n) { return {_mm256_srai_epi32(a.l, n), _mm256_srai_epi32(a.h, n)}; }
static inline I iset(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I unsigned_pairs(const uint8_t* p) { return {_mm256_cvtepu8_epi16(load128(p)), _mm256_cvtepu8_epi16(load128(p + 16))}; }
static inline I signed_pairs(const int8_t* p) { return {_mm256_cvtepi8_epi16(load128(p)), _mm256_cvtepi8_epi16(load128(p + 16))}; }
static inline I low_nibbles(I a) { I b = iset(0x000f000f); return BOTH(I, _mm256_and_si256); }
static inline I high_nibbles(I a) { return {_mm256_srli_epi16(a.l, 4), _mm256_srli_epi16(a.h, 4)}; }
// Sum wants the scale in both int16 of a lane.
static inline I shuffled(I a, int low, int high) {
  __m256i m = _mm256_add_epi8(_mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12),
                              _mm256_set1_epi16(short(low | high << 8)));
  return {_mm256_shuffle_epi8(a.l, m), _mm256_shuffle_epi8(a.h, m)};
}
static inline I firsts(I pairs) { return shuffled(pairs, 0, 1); }
static inline I seconds(I pairs) { return shuffled(pairs, 2, 3); }
struct One {};
static inline I add_pairs(I sum, I w, int32_t x) {
  __m256i v = _mm256_set1_epi32(x);
  return {_mm256_add_epi32(sum.l, _mm256_madd_epi16(w.l, v)), _mm256_add_epi32(sum.h, _mm256_madd_epi16(w.h, v))};
}
static inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
// Pairs whose bytes are a scale of 6 bits with the lowest 2 of a minimum above it; the other 4 are in a nibble of `high`.
static inline I widened(__m256i bytes) {  // [row][2], rows 0..3, 8..11 in the lower half, 4..7, 12..15 in the upper one
  __m256i zero = _mm256_setzero_si256();
  return {_mm256_unpacklo_epi8(bytes, zero), _mm256_unpackhi_epi8(bytes, zero)};
}
static inline __m256i parted(const uint8_t* p) { return _mm256_permute4x64_epi64(load256(p), 0xd8); }
static inline I six_bit_scales(const uint8_t* p) { return widened(_mm256_and_si256(parted(p), _mm256_set1_epi8(63))); }
static inline I six_bit_minima(const uint8_t* low, const uint8_t* high, bool upper) {
  __m256i l = _mm256_and_si256(_mm256_srli_epi16(parted(low), 6), _mm256_set1_epi8(3)), h = parted(high);
  h = upper ? _mm256_srli_epi16(h, 2) : _mm256_slli_epi16(h, 2);
  return widened(_mm256_or_si256(l, _mm256_and_si256(h, _mm256_set1_epi8(60))));
}
static inline I load_pairs(const int16_t* p) { return {load256(p), load256(p + 16)}; }
static inline I dot_pairs(I sum, I w, I x) {
  return {_mm256_add_epi32(sum.l, _mm256_madd_epi16(w.l, x.l)), _mm256_add_epi32(sum.h, _mm256_madd_epi16(w.h, x.h))};
}
static inline void s16store(int16_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(_mm256_packs_epi32(a.l, a.h), 0xd8));
}
static inline I iload(const int32_t* p) { return {load256(p), load256(p + 8)}; }
static inline void istore(int32_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.l);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.h);
}
static inline void s8store(int8_t* p, I a) {
  __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.l, a.h), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
static inline int isum(I a) {
  __m256i s = _mm256_add_epi32(a.l, a.h);
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}
static inline float fsum(F a) {
  __m256 s = _mm256_add_ps(a.l, a.h);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline float fhmax(F a) {
  __m256 s = _mm256_max_ps(a.l, a.h);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline F fill_from(F a, int first, float x) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i f = _mm256_set1_epi32(first);
  __m256 ml = _mm256_castsi256_ps(_mm256_cmpgt_epi32(f, lane));
  __m256 mh = _mm256_castsi256_ps(_mm256_cmpgt_epi32(f, _mm256_add_epi32(lane, _mm256_set1_epi32(8))));
  __m256 v = _mm256_set1_ps(x);
  return {_mm256_blendv_ps(v, a.l, ml), _mm256_blendv_ps(v, a.h, mh)};
}

static inline B bload(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
static inline void bstore(uint8_t* p, B a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.l);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.h);
}
static inline B bset(uint8_t m) { return {_mm256_set1_epi8(char(m)), _mm256_set1_epi8(char(m))}; }
static inline B band(B a, uint8_t m) { B b = bset(m); return BOTH(B, _mm256_and_si256); }
static inline B bor(B a, B b) { return BOTH(B, _mm256_or_si256); }
static inline B bxor(B a, uint8_t m) { B b = bset(m); return BOTH(B, _mm256_xor_si256); }
static inline B band_xor(B a, uint8_t mask, uint8_t x) { return bxor(band(a, mask), x); }
static inline B bmix(B a, B b, uint8_t mask) { return bor(band(a, mask), band(b, uint8_t(~mask))); }
static inline B bsub(B a, uint8_t m) { B b = bset(m); return BOTH(B, _mm256_sub_epi8); }
// Shifts move bits across byte borders inside 16-bit words: always mask the result with band().
template <int N> static inline B shr(B a) { return {_mm256_srli_epi16(a.l, N), _mm256_srli_epi16(a.h, N)}; }
template <int N> static inline B shl(B a) { return {_mm256_slli_epi16(a.l, N), _mm256_slli_epi16(a.h, N)}; }

// Signed weights are multiplied as |w| and the activation with w's sign, so the table of places is that of signed bytes.
static inline B coded(B places) {
  __m128i codes = _mm_xor_si128(_mm_load_si128(reinterpret_cast<const __m128i*>(kCodes)), _mm_set1_epi8(char(0x80)));
  __m256i table = _mm256_broadcastsi128_si256(codes);
  return {_mm256_shuffle_epi8(table, places.l), _mm256_shuffle_epi8(table, places.h)};
}
constexpr bool is_signed(Values v) { return are_bytes(v) || v == Values::IQ4; }
constexpr bool kBiasedBytes = false;
constexpr bool needs_zero(Values v) { return !is_signed(v); }

// How many groups of products fit into int16 sums, of weights with `lift` zeros below.
constexpr int chain(Values v, int lift = 0) {
  if (is_signed(v)) return 1;
  return 32767 / (((1 << unpacked_bits(v)) - 1) * (1 << lift) * 2 * 127);
}

// Products of 2 columns in int16, 16 rows.
template <Values V>
static inline I products(B w, const int8_t* x) {
  int32_t x4;
  std::memcpy(&x4, x, 4);
  __m256i v = _mm256_set1_epi32(x4);
  if constexpr (is_signed(V))
    return {_mm256_maddubs_epi16(_mm256_abs_epi8(w.l), _mm256_sign_epi8(v, w.l)),
            _mm256_maddubs_epi16(_mm256_abs_epi8(w.h), _mm256_sign_epi8(v, w.h))};
  else
    return {_mm256_maddubs_epi16(w.l, v), _mm256_maddubs_epi16(w.h, v)};
}
static inline I add16(I a, I b) { return BOTH(I, _mm256_add_epi16); }
// sum + the int16 pairs of s, each times the int16 of its lane in `by`
static inline I add_products(I sum, I s, I by) {
  return {_mm256_add_epi32(sum.l, _mm256_madd_epi16(s.l, by.l)), _mm256_add_epi32(sum.h, _mm256_madd_epi16(s.h, by.h))};
}
static inline I int16_scale(I scale) { return scale; }
static inline I int16_scale(One) { return iset(0x00010001); }

template <Values V>
struct Dot {
  I a, s;
  void start(int32_t isum, int zero) { a = iset(needs_zero(V) ? -zero * isum : 0); }
  template <int K> void group(B w, const int8_t* x) {
    constexpr int n = chain(V) < 4 ? chain(V) : chain(V) < 8 ? 4 : V == Values::U4 ? 8 : 4;  // half blocks end after 4 groups
    I p = products<V>(w, x);
    s = K % n == 0 ? p : add16(s, p);
    if constexpr (K % n == n - 1) a = add_products(a, s, int16_scale(One()));
  }
  I total() const { return a; }
};

template <Values V, int LIFT>
struct Sum {
  I total, s;
  void start() { total = izero(); }
  template <int K, int N, class Scale> void group(B w, const int8_t* x, Scale scale) {
    constexpr int n = chain(V, LIFT);
    I p = products<V>(w, x);
    s = K % n == 0 ? p : add16(s, p);
    if constexpr (K % n == n - 1 || K == N - 1) total = add_products(total, s, int16_scale(scale));
  }
};
#undef BOTH
