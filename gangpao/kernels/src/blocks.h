// Reading of GGUF blocks (ggml-common.h of ggml): one byte a weight, and the numbers of the block. Included inside the namespace of
// whoever reads them, so that every instruction set compiles it for itself.
#pragma once

// Up to 256 columns of one row: one byte a weight and the row's share of the superblock header.
struct Row256 {
  uint8_t q[256];
  uint16_t d[8], m[8];      // F16 styles: one per block; K styles: d[0], m[0]
  uint8_t scale[16], min[16];
};

static inline uint16_t u16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return x;
}
static inline uint32_t u32(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

static inline void nibbles32(const uint8_t* p, uint8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = p[i] & 15, q[i + 16] = p[i] >> 4;
}

static inline void fifth_bits(uint32_t bits, uint8_t* q) {
  for (int i = 0; i < 32; ++i) q[i] |= ((bits >> i) & 1) << 4;
}

static inline void read_q4_0(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p);
  nibbles32(p + 2, r.q + 32 * b);
}
static inline void read_q4_1(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p), r.m[b] = u16(p + 2);
  nibbles32(p + 4, r.q + 32 * b);
}
static inline void read_q5_0(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p);
  nibbles32(p + 6, r.q + 32 * b);
  fifth_bits(u32(p + 2), r.q + 32 * b);
}
static inline void read_q5_1(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p), r.m[b] = u16(p + 2);
  nibbles32(p + 8, r.q + 32 * b);
  fifth_bits(u32(p + 4), r.q + 32 * b);
}
static inline void read_q8_0(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p);
  std::memcpy(r.q + 32 * b, p + 2, 32);
}

// The 12 bytes of Q4_K and Q5_K hold eight 6-bit scales and minima.
static inline void six_bit_pairs(const uint8_t* s, Row256& r) {
  for (int i = 0; i < 4; ++i) {
    r.scale[i] = s[i] & 63, r.min[i] = s[i + 4] & 63;
    r.scale[i + 4] = uint8_t((s[i + 8] & 15) | (s[i] >> 6) << 4);
    r.min[i + 4] = uint8_t((s[i + 8] >> 4) | (s[i + 4] >> 6) << 4);
  }
}

static inline void nibbles256(const uint8_t* p, uint8_t* q) {
  for (int j = 0; j < 4; ++j, p += 32, q += 64)
    for (int i = 0; i < 32; ++i) q[i] = p[i] & 15, q[i + 32] = p[i] >> 4;
}

static inline void read_q4_k(const uint8_t* p, Row256& r, int) {
  r.d[0] = u16(p), r.m[0] = u16(p + 2);
  six_bit_pairs(p + 4, r);
  nibbles256(p + 16, r.q);
}
static inline void read_q5_k(const uint8_t* p, Row256& r, int) {
  r.d[0] = u16(p), r.m[0] = u16(p + 2);
  six_bit_pairs(p + 4, r);
  nibbles256(p + 48, r.q);
  for (int b = 0; b < 8; ++b)
    for (int i = 0; i < 32; ++i) r.q[32 * b + i] |= ((p[16 + i] >> b) & 1) << 4;
}
static inline void read_q6_k(const uint8_t* p, Row256& r, int) {
  const uint8_t *low = p, *high = p + 128;
  for (int n = 0; n < 2; ++n, low += 64, high += 32) {
    uint8_t* q = r.q + 128 * n;
    for (int i = 0; i < 32; ++i) {
      q[i] = uint8_t((low[i] & 15) | (high[i] & 3) << 4);
      q[i + 32] = uint8_t((low[i + 32] & 15) | ((high[i] >> 2) & 3) << 4);
      q[i + 64] = uint8_t((low[i] >> 4) | ((high[i] >> 4) & 3) << 4);
      q[i + 96] = uint8_t((low[i + 32] >> 4) | (high[i] >> 6) << 4);
    }
  }
  std::memcpy(r.scale, p + 192, 16);
  r.d[0] = u16(p + 208);
}
static inline void two_bits(const uint8_t* p, uint8_t* q) {
  for (int n = 0; n < 2; ++n)
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 32; ++i) q[128 * n + 32 * j + i] = (p[32 * n + i] >> (2 * j)) & 3;
}
static inline void read_q3_k(const uint8_t* p, Row256& r, int) {
  two_bits(p + 32, r.q);
  for (int b = 0; b < 8; ++b)
    for (int i = 0; i < 32; ++i) r.q[32 * b + i] |= ((p[i] >> b) & 1) << 2;
  const uint8_t* s = p + 96;
  for (int i = 0; i < 16; ++i) {
    int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
    int high = (s[8 + (i & 3)] >> (2 * (i >> 2))) & 3;
    r.scale[i] = uint8_t((low | high << 4) - 32);
  }
  r.d[0] = u16(p + 108);
}
static inline void read_q2_k(const uint8_t* p, Row256& r, int) {
  for (int i = 0; i < 16; ++i) r.scale[i] = p[i];  // scale | minimum << 4, as the panel wants it
  two_bits(p + 16, r.q);
  r.d[0] = u16(p + 80), r.m[0] = u16(p + 82);
}
static inline void read_tq2_0(const uint8_t* p, Row256& r, int) {
  two_bits(p, r.q);
  r.d[0] = u16(p + 64);
}
// Five base-3 digits a byte: digit n is the top of (byte * 3^n mod 256) * 3 / 256.
static inline uint8_t trit(uint8_t byte, int n) {
  static const uint8_t power[5] = {1, 3, 9, 27, 81};
  return uint8_t(uint8_t(byte * power[n]) * 3 >> 8);
}
static inline void read_tq1_0(const uint8_t* p, Row256& r, int) {
  for (int n = 0; n < 5; ++n) {
    for (int i = 0; i < 32; ++i) r.q[32 * n + i] = trit(p[i], n);
    for (int i = 0; i < 16; ++i) r.q[160 + 16 * n + i] = trit(p[32 + i], n);
  }
  for (int n = 0; n < 4; ++n)
    for (int i = 0; i < 4; ++i) r.q[240 + 4 * n + i] = trit(p[48 + i], n);
  r.d[0] = u16(p + 52);
}

// IQ4: four bits are a place in kCodes.
static inline void read_iq4_nl(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p);
  nibbles32(p + 2, r.q + 32 * b);
}
static inline void read_iq4_xs(const uint8_t* p, Row256& r, int) {
  r.d[0] = u16(p);
  uint16_t high = u16(p + 2);
  for (int b = 0; b < 8; ++b) {
    int low = (p[4 + b / 2] >> (4 * (b & 1))) & 15;
    r.scale[b] = uint8_t((low | ((high >> (2 * b)) & 3) << 4) - 32);
    nibbles32(p + 8 + 16 * b, r.q + 32 * b);
  }
}

struct Reader {
  SourceType type;
  void (*read)(const uint8_t*, Row256&, int);
};

constexpr Reader kReaders[] = {
    {{"Q4_0", 32, 18, {Values::U4, Style::F16, 8}, {}}, read_q4_0},
    {{"Q4_1", 32, 20, {Values::U4, Style::F16_MIN, 0}, {}}, read_q4_1},
    {{"Q5_0", 32, 22, {Values::U5, Style::F16, 16}, {}}, read_q5_0},
    {{"Q5_1", 32, 24, {Values::U5, Style::F16_MIN, 0}, {}}, read_q5_1},
    {{"Q8_0", 32, 34, {Values::S8, Style::F16, 0}, {}}, read_q8_0},
    {{"Q2_K", 256, 84, {Values::U2, Style::K16_MIN, 0}, {}}, read_q2_k},
    {{"Q3_K", 256, 110, {Values::U3, Style::K16, 4}, {}}, read_q3_k},
    {{"Q4_K", 256, 144, {Values::U4, Style::K, 0}, {}}, read_q4_k},
    {{"Q5_K", 256, 176, {Values::U5, Style::K, 0}, {}}, read_q5_k},
    {{"Q6_K", 256, 210, {Values::U6, Style::K16, 32}, {}}, read_q6_k},
    {{"TQ1_0", 256, 54, {Values::U2, Style::K256, 1}, {}}, read_tq1_0},
    {{"TQ2_0", 256, 66, {Values::U2, Style::K256, 1}, {}}, read_tq2_0},
    {{"IQ4_NL", 32, 18, {Values::IQ4, Style::F16, kCodesZero}, {}}, read_iq4_nl},
    {{"IQ4_XS", 256, 136, {Values::IQ4, Style::K32, kCodesZero}, {}}, read_iq4_xs},
    {{"F32", 1, 4, {Values::FLOAT, Style::FLOAT, 0}, FloatType::F32}, nullptr},
    {{"F16", 1, 2, {Values::FLOAT, Style::FLOAT, 0}, FloatType::F16}, nullptr},
    {{"BF16", 1, 2, {Values::FLOAT, Style::FLOAT, 0}, FloatType::BF16}, nullptr},
};
