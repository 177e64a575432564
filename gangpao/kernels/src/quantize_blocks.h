// GGUF blocks from integers and scales, the inverse of blocks.h; each function is the `pack` of the type in formats/quants/layout.py.
#pragma once

// One block taken apart: values as they are stored, integer scales (as they are stored) and minima, floats in F16.
struct BlockFields {
  uint8_t q[256], scale[16], minimum[16];
  uint16_t d, dmin;
};

static inline uint8_t* put16(uint8_t* p, uint16_t x) {
  std::memcpy(p, &x, 2);
  return p + 2;
}
static inline uint8_t* put_nibbles32(uint8_t* p, const uint8_t* q) {
  for (int i = 0; i < 16; ++i) p[i] = uint8_t((q[i] & 15) | q[i + 16] << 4);
  return p + 16;
}
static inline uint8_t* put_fifth_bits(uint8_t* p, const uint8_t* q) {
  for (int b = 0; b < 4; ++b) {
    p[b] = 0;
    for (int i = 0; i < 8; ++i) p[b] |= uint8_t((q[8 * b + i] >> 4) << i);
  }
  return p + 4;
}
static inline uint8_t* put_nibbles256(uint8_t* p, const uint8_t* q) {
  for (int j = 0; j < 4; ++j, p += 32, q += 64)
    for (int i = 0; i < 32; ++i) p[i] = uint8_t((q[i] & 15) | q[i + 32] << 4);
  return p;
}
// Bits SHIFT and SHIFT + 1 of 256 values.
template <int SHIFT>
static inline uint8_t* put_two_bits(uint8_t* p, const uint8_t* q) {
  for (int n = 0; n < 2; ++n, p += 32, q += 128)
    for (int i = 0; i < 32; ++i) {
      uint8_t byte = 0;
      for (int j = 0; j < 4; ++j) byte |= uint8_t(((q[32 * j + i] >> SHIFT) & 3) << (2 * j));
      p[i] = byte;
    }
  return p;
}
// Bit SHIFT of 256 values.
template <int SHIFT>
static inline uint8_t* put_one_bit(uint8_t* p, const uint8_t* q) {
  for (int i = 0; i < 32; ++i) {
    uint8_t byte = 0;
    for (int b = 0; b < 8; ++b) byte |= uint8_t(((q[32 * b + i] >> SHIFT) & 1) << b);
    p[i] = byte;
  }
  return p + 32;
}
static inline uint8_t* put_six_bit_pairs(uint8_t* p, const BlockFields& f) {
  for (int i = 0; i < 4; ++i) {
    p[i] = uint8_t(f.scale[i] | (f.scale[i + 4] >> 4) << 6), p[i + 4] = uint8_t(f.minimum[i] | (f.minimum[i + 4] >> 4) << 6);
    p[i + 8] = uint8_t((f.scale[i + 4] & 15) | (f.minimum[i + 4] & 15) << 4);
  }
  return p + 12;
}

static void put_q4_0(const BlockFields& f, uint8_t* p) { put_nibbles32(put16(p, f.d), f.q); }
static void put_q4_1(const BlockFields& f, uint8_t* p) { put_nibbles32(put16(put16(p, f.d), f.dmin), f.q); }
static void put_q5_0(const BlockFields& f, uint8_t* p) { put_nibbles32(put_fifth_bits(put16(p, f.d), f.q), f.q); }
static void put_q5_1(const BlockFields& f, uint8_t* p) {
  put_nibbles32(put_fifth_bits(put16(put16(p, f.d), f.dmin), f.q), f.q);
}
static void put_q8_0(const BlockFields& f, uint8_t* p) { std::memcpy(put16(p, f.d), f.q, 32); }
static void put_q2_k(const BlockFields& f, uint8_t* p) {
  for (int i = 0; i < 16; ++i) p[i] = uint8_t(f.scale[i] | f.minimum[i] << 4);
  put16(put16(put_two_bits<0>(p + 16, f.q), f.d), f.dmin);
}
static void put_q3_k(const BlockFields& f, uint8_t* p) {
  uint8_t* s = put_two_bits<0>(put_one_bit<2>(p, f.q), f.q);
  for (int i = 0; i < 8; ++i) s[i] = uint8_t((f.scale[i] & 15) | (f.scale[i + 8] & 15) << 4);
  for (int i = 0; i < 4; ++i) {
    s[8 + i] = 0;
    for (int k = 0; k < 4; ++k) s[8 + i] |= uint8_t((f.scale[4 * k + i] >> 4) << (2 * k));
  }
  put16(s + 12, f.d);
}
static void put_q4_k(const BlockFields& f, uint8_t* p) { put_nibbles256(put_six_bit_pairs(put16(put16(p, f.d), f.dmin), f), f.q); }
static void put_q5_k(const BlockFields& f, uint8_t* p) {
  put_nibbles256(put_one_bit<4>(put_six_bit_pairs(put16(put16(p, f.d), f.dmin), f), f.q), f.q);
}
static void put_q6_k(const BlockFields& f, uint8_t* p) {
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 64; ++i) p[64 * n + i] = uint8_t((f.q[128 * n + i] & 15) | f.q[128 * n + 64 + i] << 4);
  uint8_t* s = put_two_bits<4>(p + 128, f.q);
  std::memcpy(s, f.scale, 16);
  put16(s + 16, f.d);
}
static void put_iq4_xs(const BlockFields& f, uint8_t* p) {
  p = put16(p, f.d);
  uint16_t high = 0;
  for (int i = 0; i < 8; ++i) high = uint16_t(high | (f.scale[i] >> 4) << (2 * i));
  p = put16(p, high);
  for (int i = 0; i < 4; ++i) *p++ = uint8_t((f.scale[2 * i] & 15) | (f.scale[2 * i + 1] & 15) << 4);
  for (int b = 0; b < 8; ++b) p = put_nibbles32(p, f.q + 32 * b);
}
// Five base-3 digits as a share of 243 in 256ths, rounded up.
template <int DIGITS>
static inline uint8_t* put_trits(uint8_t* p, const uint8_t* q, int bytes) {
  static const int power[5] = {81, 27, 9, 3, 1};
  for (int i = 0; i < bytes; ++i) {
    int number = 0;
    for (int n = 0; n < DIGITS; ++n) number += q[bytes * n + i] * power[n];
    p[i] = uint8_t((number * 256 + 242) / 243);
  }
  return p + bytes;
}
static void put_tq1_0(const BlockFields& f, uint8_t* p) {
  put16(put_trits<4>(put_trits<5>(put_trits<5>(p, f.q, 32), f.q + 160, 16), f.q + 240, 4), f.d);
}
static void put_tq2_0(const BlockFields& f, uint8_t* p) { put16(put_two_bits<0>(p, f.q), f.d); }
