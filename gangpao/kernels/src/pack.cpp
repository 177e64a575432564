// Reading of GGUF blocks and writing of panels. Block layouts are those of the GGUF format (ggml-common.h of ggml).
#include "pack.h"

#include <algorithm>
#include <cstring>

namespace gangpao {

namespace {

// Up to 256 columns of one row: one byte a weight and the row's share of the superblock header.
struct Row256 {
  uint8_t q[256];
  uint16_t d[8], m[8];      // F16 styles: one per block; K styles: d[0], m[0]
  uint8_t scale[16], min[16];
};

uint16_t u16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return x;
}
uint32_t u32(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

void nibbles32(const uint8_t* p, uint8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = p[i] & 15, q[i + 16] = p[i] >> 4;
}

void fifth_bits(uint32_t bits, uint8_t* q) {
  for (int i = 0; i < 32; ++i) q[i] |= ((bits >> i) & 1) << 4;
}

void read_q4_0(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p);
  nibbles32(p + 2, r.q + 32 * b);
}
void read_q4_1(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p), r.m[b] = u16(p + 2);
  nibbles32(p + 4, r.q + 32 * b);
}
void read_q5_0(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p);
  nibbles32(p + 6, r.q + 32 * b);
  fifth_bits(u32(p + 2), r.q + 32 * b);
}
void read_q5_1(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p), r.m[b] = u16(p + 2);
  nibbles32(p + 8, r.q + 32 * b);
  fifth_bits(u32(p + 4), r.q + 32 * b);
}
void read_q8_0(const uint8_t* p, Row256& r, int b) {
  r.d[b] = u16(p);
  std::memcpy(r.q + 32 * b, p + 2, 32);
}

// The 12 bytes of Q4_K and Q5_K hold eight 6-bit scales and minima.
void six_bit_pairs(const uint8_t* s, Row256& r) {
  for (int i = 0; i < 4; ++i) {
    r.scale[i] = s[i] & 63, r.min[i] = s[i + 4] & 63;
    r.scale[i + 4] = uint8_t((s[i + 8] & 15) | (s[i] >> 6) << 4);
    r.min[i + 4] = uint8_t((s[i + 8] >> 4) | (s[i + 4] >> 6) << 4);
  }
}

void nibbles256(const uint8_t* p, uint8_t* q) {
  for (int j = 0; j < 4; ++j, p += 32, q += 64)
    for (int i = 0; i < 32; ++i) q[i] = p[i] & 15, q[i + 32] = p[i] >> 4;
}

void read_q4_k(const uint8_t* p, Row256& r, int) {
  r.d[0] = u16(p), r.m[0] = u16(p + 2);
  six_bit_pairs(p + 4, r);
  nibbles256(p + 16, r.q);
}
void read_q5_k(const uint8_t* p, Row256& r, int) {
  r.d[0] = u16(p), r.m[0] = u16(p + 2);
  six_bit_pairs(p + 4, r);
  nibbles256(p + 48, r.q);
  for (int b = 0; b < 8; ++b)
    for (int i = 0; i < 32; ++i) r.q[32 * b + i] |= ((p[16 + i] >> b) & 1) << 4;
}
void read_q6_k(const uint8_t* p, Row256& r, int) {
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
void two_bits(const uint8_t* p, uint8_t* q) {
  for (int n = 0; n < 2; ++n)
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 32; ++i) q[128 * n + 32 * j + i] = (p[32 * n + i] >> (2 * j)) & 3;
}
void read_q3_k(const uint8_t* p, Row256& r, int) {
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
void read_q2_k(const uint8_t* p, Row256& r, int) {
  for (int i = 0; i < 16; ++i) r.scale[i] = p[i];  // scale | minimum << 4, as the panel wants it
  two_bits(p + 16, r.q);
  r.d[0] = u16(p + 80), r.m[0] = u16(p + 82);
}
void read_tq2_0(const uint8_t* p, Row256& r, int) {
  two_bits(p, r.q);
  for (auto& d : r.d) d = u16(p + 64);
}
// Five base-3 digits a byte: digit n is the top of (byte * 3^n mod 256) * 3 / 256.
uint8_t trit(uint8_t byte, int n) {
  static const uint8_t power[5] = {1, 3, 9, 27, 81};
  return uint8_t(uint8_t(byte * power[n]) * 3 >> 8);
}
void read_tq1_0(const uint8_t* p, Row256& r, int) {
  for (int n = 0; n < 5; ++n) {
    for (int i = 0; i < 32; ++i) r.q[32 * n + i] = trit(p[i], n);
    for (int i = 0; i < 16; ++i) r.q[160 + 16 * n + i] = trit(p[32 + i], n);
  }
  for (int n = 0; n < 4; ++n)
    for (int i = 0; i < 4; ++i) r.q[240 + 4 * n + i] = trit(p[48 + i], n);
  for (auto& d : r.d) d = u16(p + 52);
}

struct Reader {
  SourceType type;
  void (*read)(const uint8_t*, Row256&, int);
};

constexpr Reader kReaders[] = {
    {{"Q4_0", 32, 18, {4, Style::F16, 8}, {}}, read_q4_0},
    {{"Q4_1", 32, 20, {4, Style::F16_MIN, 0}, {}}, read_q4_1},
    {{"Q5_0", 32, 22, {5, Style::F16, 16}, {}}, read_q5_0},
    {{"Q5_1", 32, 24, {5, Style::F16_MIN, 0}, {}}, read_q5_1},
    {{"Q8_0", 32, 34, {8, Style::F16, 0}, {}}, read_q8_0},
    {{"Q2_K", 256, 84, {2, Style::K16_MIN, 0}, {}}, read_q2_k},
    {{"Q3_K", 256, 110, {3, Style::K16, 4}, {}}, read_q3_k},
    {{"Q4_K", 256, 144, {4, Style::K, 0}, {}}, read_q4_k},
    {{"Q5_K", 256, 176, {5, Style::K, 0}, {}}, read_q5_k},
    {{"Q6_K", 256, 210, {6, Style::K16, 32}, {}}, read_q6_k},
    {{"TQ1_0", 256, 54, {2, Style::F16, 1}, {}}, read_tq1_0},
    {{"TQ2_0", 256, 66, {2, Style::F16, 1}, {}}, read_tq2_0},
    {{"F32", 1, 4, {32, Style::FLOAT, 0}, FloatType::F32}, nullptr},
    {{"F16", 1, 2, {16, Style::FLOAT, 0}, FloatType::F16}, nullptr},
    {{"BF16", 1, 2, {16, Style::FLOAT, 0}, FloatType::BF16}, nullptr},
};

constexpr bool all_have_kernels() {
  for (const Reader& r : kReaders)
    if (!has_kernel(r.type.format, r.type.float_type)) return false;
  return true;
}
static_assert(all_have_kernels(), "a reader of bits and style that linear_any.h has no kernel for");
static_assert(!has_kernel({3, Style::F16, 4}, {}) && !has_kernel({6, Style::K, 0}, {}), "no kernel answers for another form");

void put16(uint8_t* p, uint16_t x) { std::memcpy(p, &x, 2); }
void put32(uint8_t* p, uint32_t x) { std::memcpy(p, &x, 4); }

// Row `r` of a block: 32 bytes into the vectors of `bits`-bit weights (panel.h).
void write_block(const uint8_t* q, int bits, int r, uint8_t* to) {
  auto group = [q](int g) { return u32(q + 4 * g); };
  to += 4 * r;
  if (bits == 8) {
    for (int g = 0; g < 8; ++g) put32(to + 64 * g, group(g));
    return;
  }
  if (bits >= 4) {
    for (int j = 0; j < 4; ++j) put32(to + 64 * j, (group(j) & 0x0f0f0f0f) | (group(j + 4) & 0x0f0f0f0f) << 4);
    to += 256;
  }
  if (bits == 2 || bits == 3 || bits == 6) {
    int from = bits == 6 ? 4 : 0;
    for (int j = 0; j < 2; ++j) {
      uint32_t x = 0;
      for (int s = 0; s < 4; ++s) x |= (group(2 * s + j) >> from & 0x03030303) << (2 * s);
      put32(to + 64 * j, x);
    }
    to += 128;
  }
  if (bits == 3 || bits == 5) {
    uint32_t x = 0;
    for (int g = 0; g < 8; ++g) x |= (group(g) >> (bits - 1) & 0x01010101) << g;
    put32(to, x);
  }
}

void write_header(const Row256& row, Style style, int blocks, int r, uint8_t* h) {
  if (style == Style::F16 || style == Style::F16_MIN) {
    int step = style == Style::F16 ? 32 : 64;
    for (int b = 0; b < blocks; ++b) {
      put16(h + step * b + 2 * r, row.d[b]);
      if (style == Style::F16_MIN) put16(h + step * b + 32 + 2 * r, row.m[b]);
    }
    return;
  }
  put16(h + 2 * r, row.d[0]);
  if (style != Style::K16) put16(h + 32 + 2 * r, row.m[0]);
  for (int b = 0; b < blocks; ++b) {
    uint8_t* s = h + 64 + 32 * b + r;
    if (style == Style::K) s[0] = row.scale[b], s[16] = row.min[b];
    else s[0] = row.scale[2 * b], s[16] = row.scale[2 * b + 1];
  }
}

void pack_panel(const Reader& reader, const uint8_t* raw, size_t row_bytes, const int32_t* order, const Packed& w, int panel,
                uint8_t* to) {
  const SourceType& type = reader.type;
  int blocks = w.cols / kBlock;
  std::memset(to, 0, w.panel_stride);
  for (int b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = std::min(blocks - b0, kSuper);
    int header = header_bytes(type.format.style, n), step = block_bytes(type.format.bits);
    for (int r = 0; r < kPanelRows && panel * kPanelRows + r < w.rows; ++r) {
      int row = panel * kPanelRows + r;
      const uint8_t* p = raw + size_t(order ? order[row] : row) * row_bytes;
      Row256 data;
      if (type.block == 256) reader.read(p + size_t(b0 / kSuper) * type.bytes, data, 0);
      else
        for (int b = 0; b < n; ++b) reader.read(p + size_t(b0 + b) * type.bytes, data, b);
      write_header(data, type.format.style, n, r, to);
      for (int b = 0; b < n; ++b) write_block(data.q + 32 * b, type.format.bits, r, to + header + b * step);
    }
    to += header + n * step;
  }
}

void pack_float_panel(const SourceType& type, const uint8_t* raw, const int32_t* order, const Packed& w, int panel, uint8_t* to) {
  std::memset(to, 0, w.panel_stride);
  for (int r = 0; r < kPanelRows && panel * kPanelRows + r < w.rows; ++r) {
    int row = panel * kPanelRows + r;
    const uint8_t* p = raw + size_t(order ? order[row] : row) * w.cols * type.bytes;
    for (int c = 0; c < w.cols; ++c)
      std::memcpy(to + (size_t(c) * kPanelRows + r) * type.bytes, p + size_t(c) * type.bytes, type.bytes);
  }
}

}  // namespace

const SourceType* find_source(const std::string& name) {
  for (const Reader& r : kReaders)
    if (name == r.type.name) return &r.type;
  return nullptr;
}

std::vector<SourceType> all_sources() {
  std::vector<SourceType> out;
  for (const Reader& r : kReaders) out.push_back(r.type);
  return out;
}

size_t panel_bytes(const SourceType& type, int cols) {
  return type.format.style == Style::FLOAT ? size_t(cols) * kPanelRows * type.bytes : panel_bytes(type.format, cols / kBlock);
}

void pack_panels(const SourceType& type, const uint8_t* raw, const int32_t* order, const Packed& w, uint8_t* to, int begin,
                 int end) {
  const Reader* reader = std::find_if(std::begin(kReaders), std::end(kReaders),
                                      [&](const Reader& r) { return std::strcmp(r.type.name, type.name) == 0; });
  size_t row_bytes = size_t(w.cols) / type.block * type.bytes;
  for (int panel = begin; panel < end; ++panel) {
    uint8_t* p = to + size_t(panel) * w.panel_stride;
    if (reader->read) pack_panel(*reader, raw, row_bytes, order, w, panel, p);
    else pack_float_panel(type, raw, order, w, panel, p);
  }
}

}  // namespace gangpao
