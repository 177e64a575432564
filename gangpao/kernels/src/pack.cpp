// GGUF blocks (blocks.h) to panels (panel.h).
#include "pack.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace gangpao {

namespace {

#include "blocks.h"

constexpr bool all_have_kernels() {
  for (const Reader& r : kReaders)
    if (!has_kernel(r.type.format, r.type.float_type)) return false;
  return true;
}
static_assert(all_have_kernels(), "a reader of values and style that linear_any.h has no kernel for");
static_assert(!has_kernel({Values::U3, Style::F16, 4}, {}) && !has_kernel({Values::U6, Style::K, 0}, {}), "no kernel answers for another form");

void put16(uint8_t* p, uint16_t x) { std::memcpy(p, &x, 2); }
void put32(uint8_t* p, uint32_t x) { std::memcpy(p, &x, 4); }

// Bits of group g in the vectors of 2-bit weights.
constexpr int kTwoBits[8] = {0, 0, 4, 4, 2, 2, 6, 6};

// Row `r` of a block: 32 bytes into the vectors of its weights (panel.h).
void write_block(const uint8_t* q, Values values, int r, uint8_t* to) {
  auto group = [q](int g) { return u32(q + 4 * g); };
  int bits = bits_of(values);
  to += 4 * r;
  if (bits == 8) {
    for (int g = 0; g < 8; ++g) put32(to + 64 * g, group(g));
    return;
  }
  if (bits == 3) {
    for (int v = 0; v < 3; ++v) {
      uint32_t fourth = group(3) | group(7) << 3;
      put32(to + 64 * v, group(v) | group(4 + v) << 3 | (fourth >> (2 * v) & 0x03030303) << 6);
    }
    return;
  }
  if (bits >= 4) {
    for (int j = 0; j < 4; ++j) put32(to + 64 * j, (group(j) & 0x0f0f0f0f) | (group(j + 4) & 0x0f0f0f0f) << 4);
    to += 256;
  }
  if (bits == 2 || bits == 6) {
    int from = bits == 6 ? 4 : 0;
    for (int j = 0; j < 2; ++j) {
      uint32_t x = 0;
      for (int g = j; g < 8; g += 2) x |= (group(g) >> from & 0x03030303) << kTwoBits[g];
      put32(to + 64 * j, x);
    }
  }
  if (bits == 5) {
    uint32_t x = 0;
    for (int g = 0; g < 8; ++g) x |= (group(g) >> 4 & 0x01010101) << g;
    put32(to, x);
  }
}

// d: where the 16 d of this superblock are, of K styles.
void write_header(const Row256& row, Style style, int blocks, int r, uint8_t* d, uint8_t* h) {
  if (style == Style::F16 || style == Style::F16_MIN) {
    int step = style == Style::F16 ? 32 : 64;
    for (int b = 0; b < blocks; ++b) {
      put16(h + step * b + 2 * r, row.d[b]);
      if (style == Style::F16_MIN) put16(h + step * b + 32 + 2 * r, row.m[b]);
    }
    return;
  }
  put16(d + 2 * r, row.d[0]);
  if (!d_first(style)) put16(d + 32 + 2 * r, row.m[0]), h += 64;
  int pairs = style == Style::K256 ? 0 : style == Style::K || style == Style::K32 ? blocks / 2 : blocks;
  for (int i = 0; i < pairs; ++i) std::memcpy(h + 32 * i + 2 * r, row.scale + 2 * i, 2);
  for (int b = 0; b < kSuper && style == Style::K; ++b) {  // scales have 6 bits, and so have minima, in two parts
    h[32 * (b / 2) + 2 * r + b % 2] |= uint8_t(row.min[b] << 6);
    h[128 + 32 * (b / 4) + 2 * r + b % 2] |= uint8_t(row.min[b] >> 2 << (b % 4 < 2 ? 0 : 4));
  }
}

// The upper bits of 32 weights to one block, the others to another; values: the split ones.
void write_planes(const uint8_t* q, Values values, int r, uint8_t* to, uint8_t* rest) {
  uint8_t upper[kBlock], lower[kBlock];
  int bits = bits_of(rest_of(values));
  for (int i = 0; i < kBlock; ++i) {
    uint8_t x = bits_of(values) == 5 ? q[i] ^ 0x80 : q[i];
    upper[i] = x >> bits, lower[i] = uint8_t(x & ((1 << bits) - 1));
  }
  write_block(upper, bits_of(values) == 5 ? Values::U5 : Values::U4, r, to);
  write_block(lower, rest_of(values), r, rest);
}

void pack_panel(const Reader& reader, const uint8_t* raw, size_t row_bytes, const int32_t* order, const Packed& w, int panel,
                uint8_t* to, uint8_t* rest) {
  const SourceType& type = reader.type;
  int blocks = w.cols / kBlock;
  std::memset(to, 0, w.panel_stride);
  if (rest) std::memset(rest, 0, w.rest_stride);
  uint8_t* d = to;
  to += panel_head_bytes(type.format.style, blocks);
  for (int b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = std::min(blocks - b0, kSuper);
    int header = header_bytes(type.format.style, n), step = block_bytes(w.format.values), rest_step = rest_bytes(w.format.values);
    for (int r = 0; r < kPanelRows && panel * kPanelRows + r < w.rows; ++r) {
      int row = panel * kPanelRows + r;
      const uint8_t* p = raw + size_t(order ? order[row] : row) * row_bytes;
      Row256 data;
      if (type.block == 256) reader.read(p + size_t(b0 / kSuper) * type.bytes, data, 0);
      else
        for (int b = 0; b < n; ++b) reader.read(p + size_t(b0 + b) * type.bytes, data, b);
      write_header(data, type.format.style, n, r, d_first(type.format.style) ? d + b0 / kSuper * 32 : to, to);
      for (int b = 0; b < n; ++b) {
        if (rest) write_planes(data.q + 32 * b, w.format.values, r, to + header + b * step, rest + b * rest_step);
        else write_block(data.q + 32 * b, type.format.values, r, to + header + b * step);
      }
    }
    to += header + n * step, rest += n * rest_step;
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
  int i = source_index(name);
  return i < 0 ? nullptr : &kReaders[i].type;
}

int source_index(const std::string& name) {
  for (size_t i = 0; i < std::size(kReaders); ++i)
    if (name == kReaders[i].type.name) return int(i);
  return -1;
}

std::vector<SourceType> all_sources() {
  std::vector<SourceType> out;
  for (const Reader& r : kReaders) out.push_back(r.type);
  return out;
}

size_t panel_bytes(const SourceType& type, int cols) {
  return type.format.style == Style::FLOAT ? size_t(cols) * kPanelRows * type.bytes : panel_bytes(type.format, cols / kBlock);
}

void pack_panels(const SourceType& type, const uint8_t* raw, const int32_t* order, const Packed& w, uint8_t* to, uint8_t* rest,
                 int begin, int end) {
  const Reader* reader = std::find_if(std::begin(kReaders), std::end(kReaders),
                                      [&](const Reader& r) { return std::strcmp(r.type.name, type.name) == 0; });
  size_t row_bytes = size_t(w.cols) / type.block * type.bytes;
  for (int panel = begin; panel < end; ++panel) {
    uint8_t* p = to + size_t(panel) * w.panel_stride;
    uint8_t* lower = rest ? rest + size_t(panel) * w.rest_stride : nullptr;
    if (reader->read) pack_panel(*reader, raw, row_bytes, order, w, panel, p, lower);
    else pack_float_panel(type, raw, order, w, panel, p);
  }
}

}  // namespace gangpao
