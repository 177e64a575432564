// How the bytes of a block (panel.h) become groups of weight bytes, and its header scales.

// Group G (0..7) of a block of BITS-bit weights: 16 rows x 4 columns as bytes.
template <int BITS, int G>
static inline B group_bytes(const uint8_t* q) {
  if constexpr (BITS == 8) {
    return bload(q + 64 * G);
  } else if constexpr (BITS == 2) {
    return band(shr<2 * (G >> 1)>(bload(q + 64 * (G & 1))), 3);
  } else if constexpr (BITS == 3) {
    B high = bload(q + 128);
    if constexpr (G < 2) high = shl<2 - G>(high);
    else high = shr<G - 2>(high);
    return bor(group_bytes<2, G>(q), band(high, 4));
  } else if constexpr (BITS == 4) {
    B v = bload(q + 64 * (G & 3));
    if constexpr (G >= 4) v = shr<4>(v);
    return band(v, 15);
  } else if constexpr (BITS == 5) {
    B high = bload(q + 256);
    if constexpr (G < 4) high = shl<4 - G>(high);
    else high = shr<G - 4>(high);
    return bor(group_bytes<4, G>(q), band(high, 16));
  } else {
    static_assert(BITS == 6);
    B high = bload(q + 256 + 64 * (G & 1));
    constexpr int s = 2 * (G >> 1);
    if constexpr (s < 4) high = shl<4 - s>(high);
    else high = shr<s - 4>(high);
    return bor(group_bytes<4, G>(q), band(high, 48));
  }
}

constexpr bool halves(Style s) { return s == Style::K16 || s == Style::K16_MIN; }
constexpr bool has_min(Style s) { return s == Style::F16_MIN || s == Style::K || s == Style::K16_MIN; }

// Scales of one block: w = scale * (q - zero) - min, for each half block where the style has halves.
struct Scales { F scale[2], min[2]; };

// The part of a superblock header that its blocks share.
template <Style S>
struct Header {
  const uint8_t* p;
  F d, dmin;
  explicit Header(const uint8_t* header) : p(header), d(fzero()), dmin(fzero()) {
    if constexpr (S == Style::K || S == Style::K16 || S == Style::K16_MIN) {
      d = hload(reinterpret_cast<const uint16_t*>(p));
      if constexpr (S != Style::K16) dmin = hload(reinterpret_cast<const uint16_t*>(p + 32));
    }
  }
  Scales block(int b) const {
    Scales s;
    if constexpr (S == Style::F16) {
      s.scale[0] = hload(reinterpret_cast<const uint16_t*>(p + 32 * b));
    } else if constexpr (S == Style::F16_MIN) {
      s.scale[0] = hload(reinterpret_cast<const uint16_t*>(p + 64 * b));
      s.min[0] = sub(fzero(), hload(reinterpret_cast<const uint16_t*>(p + 64 * b + 32)));
    } else if constexpr (S == Style::K) {
      s.scale[0] = mul(d, u8load(p + 64 + 32 * b));
      s.min[0] = mul(dmin, u8load(p + 64 + 32 * b + 16));
    } else {
      for (int h = 0; h < 2; ++h) {
        const uint8_t* c = p + 64 + 32 * b + 16 * h;
        if constexpr (S == Style::K16) s.scale[h] = mul(d, s8load(reinterpret_cast<const int8_t*>(c)));
        else s.scale[h] = mul(d, lownib(c)), s.min[h] = mul(dmin, highnib(c));
      }
    }
    return s;
  }
};
