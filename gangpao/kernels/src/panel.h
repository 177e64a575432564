// The packed weight format, the same for every instruction set.
//
// A matrix [rows, cols] is cut into panels of 16 rows. A panel is a run of superblocks of up to 8 blocks; a block is
// 16 rows x 32 columns. Inside a block one 64-byte vector holds 16 rows x 4 columns (byte = row * 4 + column), so the
// 16 int32 lanes of a dot product are 16 rows: no horizontal sum anywhere, and the same bytes are an AMX tile.
// Group g (0..7) means columns 4g .. 4g+3 of a block.
//
//   panel      = d of all superblocks (16 f16 each, padded to 64 bytes; of K16, K32, K256 only) | superblock 0 | superblock 1 | ...
//   superblock = header, padded to 64 bytes | quants of block 0 | ... | quants of block n-1
//
//   quants   2 bits: 2 vectors, group g in vector g&1, groups 0 and 1 at bit 0, 2 and 3 at bit 4, 4 and 5 at bit 2, 6 and 7 at bit 6
//            3 bits: 3 vectors; of vector v bits 0..2 are group v, bits 3..5 group 4 + v, and its bits 6,7 are bits 2v, 2v+1 of a
//                    fourth such vector: groups 3 and 7
//            4 bits: 4 vectors, groups 0..3 in the low nibbles, 4..7 in the high ones
//            5 bits: the 4-bit vectors, then one vector with bit g of a byte = bit 4 of group g
//            6 bits: the 4-bit vectors, then 2 vectors like those of 2 bits = bits 4,5
//            8 bits: 8 vectors, signed
//            Matrices in two planes have the upper 5 of 8 bits (of w + 128) as those of 5, the upper 4 of 6 as those of 4, and in the second
//            plane the lower 3 or 2 bits as those of 3 or 2, without headers.
//   header   F16      per block: 16 scales (f16)
//            F16_MIN  per block: 16 scales, 16 minima (f16);                  w = scale * q + min
//            K        16 d, 16 dmin (f16); per two blocks: 16 pairs of bytes, scale | bits 0,1 of the minimum << 6; then two such vectors
//                     for bits 2..5 of the minima, of blocks 4v, 4v+1 in the low nibbles of vector v, of 4v+2, 4v+3 in the high ones;
//                     w = d*sc*q - dmin*mn
//            K16      per block: 16 pairs of s8 scales
//            K16_MIN  16 d, 16 dmin (f16); per block: 16 pairs of bytes, scale | minimum << 4
//            K32      per two blocks: 16 pairs of s8 scales
//            K256     none
// A pair is what a row has for two blocks, or for the two halves (16 columns each) of a block: bytes [row][2]. Widened, they are the
// two int16 of the row's lane, as products of int16 want them.
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

// What the stored bits of a weight are: unsigned numbers, signed bytes, or places in the table of IQ4_NL and IQ4_XS.
// S8_SPLIT and U6_SPLIT are S8 and U6 in two planes: the upper 5 and 4 bits where weights are, the lower ones in `Packed::rest`. S8_UPPER
// and U6_UPPER are the same without the second plane: the middle of what the lower bits can be stands for them.
enum class Values : int { U2, U3, U4, U5, U6, S8, IQ4, S8_SPLIT, U6_SPLIT, S8_UPPER, U6_UPPER, FLOAT };
// Of a weight in the first plane.
constexpr int bits_of(Values v) {
  switch (v) {
    case Values::U2: return 2;
    case Values::U3: return 3;
    case Values::U4:
    case Values::U6_SPLIT:
    case Values::U6_UPPER:
    case Values::IQ4: return 4;
    case Values::U5:
    case Values::S8_SPLIT:
    case Values::S8_UPPER: return 5;
    case Values::U6: return 6;
    case Values::S8: return 8;
    case Values::FLOAT: break;
  }
  return 0;
}
constexpr const char* values_name(Values v) {
  switch (v) {
    case Values::U2: return "U2";
    case Values::U3: return "U3";
    case Values::U4: return "U4";
    case Values::U5: return "U5";
    case Values::U6: return "U6";
    case Values::S8: return "S8";
    case Values::IQ4: return "IQ4";
    case Values::S8_SPLIT: return "S8_SPLIT";
    case Values::U6_SPLIT: return "U6_SPLIT";
    case Values::S8_UPPER: return "S8_UPPER";
    case Values::U6_UPPER: return "U6_UPPER";
    case Values::FLOAT: return "FLOAT";
  }
  return "";
}

// Weights that are signed bytes once they are unpacked, and how many bits an unpacked one has.
constexpr bool are_bytes(Values v) { return v == Values::S8 || v == Values::S8_SPLIT || v == Values::S8_UPPER; }
constexpr int unpacked_bits(Values v) {
  return are_bytes(v) ? 8 : v == Values::U6_SPLIT || v == Values::U6_UPPER ? 6 : bits_of(v);
}

// The table of IQ4_NL and IQ4_XS (kvalues_iq4nl of ggml) plus 128: unsigned bytes with a zero point, as products want them.
constexpr int kCodesZero = 128;
alignas(16) constexpr uint8_t kCodes[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

enum class Style : int { F16, F16_MIN, K, K16, K16_MIN, K32, K256, FLOAT };
constexpr const char* style_name(Style style) {
  switch (style) {
    case Style::F16: return "F16";
    case Style::F16_MIN: return "F16_MIN";
    case Style::K: return "K";
    case Style::K16: return "K16";
    case Style::K16_MIN: return "K16_MIN";
    case Style::K32: return "K32";
    case Style::K256: return "K256";
    case Style::FLOAT: return "FLOAT";
  }
  return "";
}

enum class FloatType : int { F32, F16, BF16 };

struct Format {
  Values values;
  Style style;
  int zero;  // subtracted from the unsigned value; 8-bit values are stored signed, so 0 there
  constexpr int bits() const { return bits_of(values); }
};

// Every pair of values and style that there are kernels for. linear_any.h makes its choice from this list, and pack.cpp does not
// compile with a reader of any other pair: packed in one form and multiplied as another, weights would be wrong in silence.
#define GANGPAO_PACKED_FORMS(ONE) \
  ONE(U4, F16) ONE(U5, F16) ONE(S8, F16) ONE(IQ4, F16) \
  ONE(U4, F16_MIN) ONE(U5, F16_MIN) \
  ONE(U4, K) ONE(U5, K) \
  ONE(U3, K16) ONE(U6, K16) \
  ONE(U2, K16_MIN) \
  ONE(IQ4, K32) \
  ONE(U2, K256) \
  ONE(S8_SPLIT, F16) ONE(S8_UPPER, F16) ONE(U6_SPLIT, K16) ONE(U6_UPPER, K16)

constexpr bool has_kernel(Format f, FloatType type) {
#define GANGPAO_IS(VALUES, STYLE) \
  if (f.values == Values::VALUES && f.style == Style::STYLE) return true;
  GANGPAO_PACKED_FORMS(GANGPAO_IS)
#undef GANGPAO_IS
  if (f.style != Style::FLOAT) return false;
  return type == FloatType::F32 || type == FloatType::F16 || type == FloatType::BF16;
}

// What may be packed in two planes as what, the first of them alone, and the values of the second.
constexpr bool may_split(Values v) { return v == Values::S8 || v == Values::U6; }
constexpr bool is_split(Values v) { return v == Values::S8_SPLIT || v == Values::U6_SPLIT; }
constexpr Values split_of(Values v) { return v == Values::S8 ? Values::S8_SPLIT : Values::U6_SPLIT; }
constexpr Values upper_of(Values v) { return v == Values::S8_SPLIT ? Values::S8_UPPER : Values::U6_UPPER; }
constexpr Values rest_of(Values v) { return v == Values::S8_SPLIT ? Values::U3 : Values::U2; }

constexpr int block_bytes(Values v) { return bits_of(v) * 64; }
constexpr int rest_bytes(Values v) { return is_split(v) ? block_bytes(rest_of(v)) : 0; }

constexpr int header_bytes(Style style, int blocks) {
  int n = 0;
  switch (style) {
    case Style::F16: n = 32 * blocks; break;
    case Style::F16_MIN: n = 64 * blocks; break;
    case Style::K: n = 64 + 24 * blocks; break;
    case Style::K16: n = 32 * blocks; break;
    case Style::K16_MIN: n = 64 + 32 * blocks; break;
    case Style::K32: n = 16 * blocks; break;
    case Style::K256:
    case Style::FLOAT: break;
  }
  return (n + 63) / 64 * 64;
}

// Whether d of all superblocks stands at the beginning of a panel: alone, it would fill half of a vector in every header.
constexpr bool d_first(Style s) { return s == Style::K16 || s == Style::K32 || s == Style::K256; }
constexpr int panel_head_bytes(Style style, int num_blocks) {
  return d_first(style) ? (num_blocks / kSuper * 32 + 63) / 64 * 64 : 0;
}

inline size_t panel_bytes(Format f, int num_blocks) {
  int full = num_blocks / kSuper, rest = num_blocks % kSuper;
  size_t n = panel_head_bytes(f.style, num_blocks) + size_t(full) * (header_bytes(f.style, kSuper) + kSuper * block_bytes(f.values));
  if (rest) n += header_bytes(f.style, rest) + rest * block_bytes(f.values);
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
  // Of values in two planes: `data` has headers and upper bits, and this the others, panel after panel of blocks alone.
  const uint8_t* rest = nullptr;
  size_t rest_stride = 0;
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
  int16_t* sums = nullptr;  // groups of 256: [group][token_stride][kSums], sums of q over 16 half blocks, 8 blocks, and all
};
constexpr int kSumsOfBlocks = 16, kSumOfAll = 24, kSums = 26;

// The input of a linear layer in the forms that its weights need: F16 styles read groups of 32, K styles groups of 256.
struct Acts {
  int n = 0, cols = 0;
  const float* f = nullptr;
  int f_stride = 0;
  Quants blocks, supers;
};

// How far before their use weights are asked for, in bytes: into the L2 cache, then into L1. 0 leaves it to the hardware.
// many_places: one token's weights are read from several panels at a time, where kernels can.
struct Ahead {
  int l2 = 0, l1 = 0;
  bool many_places = false;
};

// The result rows of a linear layer.
struct Out {
  float* data = nullptr;
  int stride = 0;
  bool add = false;   // out += scale * y instead of out = y
  float scale = 1.0f;
};

}  // namespace gangpao
