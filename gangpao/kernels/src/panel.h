// The packed weight format, the same for every instruction set.
//
// A matrix [rows, cols] is cut into panels of 16 rows. A panel is a run of superblocks of up to 8 blocks; a block is
// 16 rows x 32 columns. Inside a block one 64-byte vector holds 16 rows x 4 columns (byte = row * 4 + column), so the
// 16 int32 lanes of a dot product are 16 rows: no horizontal sum anywhere, and the same bytes are an AMX tile.
// Group g (0..7) means columns 4g .. 4g+3 of a block.
//
//   superblock = header, padded to 64 bytes | quants of block 0 | ... | quants of block n-1
//
//   quants   2 bits: 2 vectors, group g in vector g&1 at bit 2*(g>>1)
//            3 bits: the 2-bit vectors, then one vector with bit g of a byte = bit 2 of group g
//            4 bits: 4 vectors, groups 0..3 in the low nibbles, 4..7 in the high ones
//            5 bits: the 4-bit vectors, then one vector with bit g of a byte = bit 4 of group g
//            6 bits: the 4-bit vectors, then 2 vectors like those of 2 bits = bits 4,5
//            8 bits: 8 vectors, signed
//   header   F16      per block: 16 scales (f16)
//            F16_MIN  per block: 16 scales, 16 minima (f16);           w = scale * q + min
//            K        16 d, 16 dmin (f16); per block: 16 u8 scales, 16 u8 minima;  w = d*sc*q - dmin*mn
//            K16      16 d (f16), 32 bytes unused; per half block of 16 columns: 16 s8 scales
//            K16_MIN  16 d, 16 dmin (f16); per half block: 16 bytes, scale | minimum << 4
// gangpao/kernels/reference.py defines the same in numpy.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace gangpao {

constexpr int kPanelRows = 16;
constexpr int kBlock = 32;
constexpr int kSuper = 8;  // blocks in a full superblock
constexpr int kSuperColumns = kBlock * kSuper;

enum class Style : int { F16, F16_MIN, K, K16, K16_MIN, FLOAT };
constexpr const char* style_name(Style style) {
  switch (style) {
    case Style::F16: return "F16";
    case Style::F16_MIN: return "F16_MIN";
    case Style::K: return "K";
    case Style::K16: return "K16";
    case Style::K16_MIN: return "K16_MIN";
    case Style::FLOAT: return "FLOAT";
  }
  return "";
}

enum class FloatType : int { F32, F16, BF16 };

struct Format {
  int bits;
  Style style;
  int zero;  // subtracted from the stored unsigned value; 8-bit values are stored signed, so 0 there
};

// Every pair of bits and style that there are kernels for. linear_any.h makes its choice from this list, and pack.cpp does not
// compile with a reader of any other pair: packed in one form and multiplied as another, weights would be wrong in silence.
#define GANGPAO_PACKED_FORMS(ONE) \
  ONE(2, F16) ONE(4, F16) ONE(5, F16) ONE(8, F16) \
  ONE(4, F16_MIN) ONE(5, F16_MIN) \
  ONE(4, K) ONE(5, K) \
  ONE(3, K16) ONE(6, K16) \
  ONE(2, K16_MIN)

constexpr bool has_kernel(Format f, FloatType type) {
#define GANGPAO_IS(BITS, STYLE) \
  if (f.bits == BITS && f.style == Style::STYLE) return true;
  GANGPAO_PACKED_FORMS(GANGPAO_IS)
#undef GANGPAO_IS
  if (f.style != Style::FLOAT) return false;
  return type == FloatType::F32 || type == FloatType::F16 || type == FloatType::BF16;
}

constexpr int block_bytes(int bits) { return bits * 64; }

constexpr int header_bytes(Style style, int blocks) {
  int n = 0;
  switch (style) {
    case Style::F16: n = 32 * blocks; break;
    case Style::F16_MIN: n = 64 * blocks; break;
    case Style::K:
    case Style::K16:
    case Style::K16_MIN: n = 64 + 32 * blocks; break;
    case Style::FLOAT: break;
  }
  return (n + 63) / 64 * 64;
}

inline size_t panel_bytes(Format f, int num_blocks) {
  int full = num_blocks / kSuper, rest = num_blocks % kSuper;
  size_t n = size_t(full) * (header_bytes(f.style, kSuper) + kSuper * block_bytes(f.bits));
  if (rest) n += header_bytes(f.style, rest) + rest * block_bytes(f.bits);
  return n;
}

// One packed matrix as the kernels see it.
struct Packed {
  Format format{};
  FloatType float_type = FloatType::F32;  // for Style::FLOAT: [panel][column][16 rows] in this type
  int rows = 0, cols = 0;
  size_t panel_stride = 0;  // bytes from panel to panel
  const uint8_t* data = nullptr;
  const float* bias = nullptr;  // [rows] or null
  int num_panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
};

// Activations as int8 with a scale for each group of columns: x ~ scale * q. Rows are [token][q_stride]; what belongs to a group
// is [group][token_stride], so that a tile of tokens is contiguous.
struct Quants {
  int8_t* q = nullptr;
  int q_stride = 0, token_stride = 0;
  float* scale = nullptr;
  float* sum = nullptr;     // groups of 32: scale * (sum of q)
  int32_t* isum = nullptr;  // groups of 32: sum of q
  int16_t* sums = nullptr;  // groups of 256: [group][token_stride][kSums], sums of q over 16 half blocks, then over 8 blocks
};
constexpr int kSums = 24;

// The input of a linear layer in the forms that its weights need: F16 styles read groups of 32, K styles groups of 256.
struct Acts {
  int n = 0, cols = 0;
  const float* f = nullptr;
  int f_stride = 0;
  Quants blocks, supers;
};

// How far before their use weights are asked for, in bytes: into the L2 cache, then into L1. 0 leaves it to the hardware.
struct Ahead {
  int l2 = 0, l1 = 0;
};

// The result rows of a linear layer.
struct Out {
  float* data = nullptr;
  int stride = 0;
  bool add = false;   // out += scale * y instead of out = y
  float scale = 1.0f;
};

}  // namespace gangpao
