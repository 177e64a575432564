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
constexpr bool is_k(Style s) { return s == Style::K || s == Style::K16 || s == Style::K16_MIN; }

static inline const uint16_t* half_words(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

// Header of the F16 styles: w = scale * (q - zero) - min for block b.
template <Style S>
struct Header {
  const uint8_t* p;
  F scale(int b) const { return hload(half_words(p + (S == Style::F16 ? 32 : 64) * b)); }
  F min(int b) const { return sub(fzero(), hload(half_words(p + 64 * b + 32))); }
};

// Header of the K styles: w = d * scale * (q - zero) - dmin * minimum, scale and minimum integers of a block or half block.
template <Style S>
struct KHeader {
  const uint8_t* p;
  static constexpr int parts = halves(S) ? 2 : 1;                           // scales in a block
  static constexpr int pairs = S == Style::K ? 4 : S == Style::K16 ? 0 : 8;  // of minima in a superblock
  F d() const { return hload(half_words(p)); }
  F dmin() const { return hload(half_words(p + 32)); }
  I scale(int b, int part) const {
    const uint8_t* c = p + 64 + 32 * b + 16 * part;
    if constexpr (S == Style::K) return u8int(c);
    else if constexpr (S == Style::K16) return s8int(reinterpret_cast<const int8_t*>(c));
    else return u8int(c, 15);
  }
  // Minima 2i and 2i + 1 of each row, as the two int16 of its lane.
  I min_pair(int i) const {
    if constexpr (S == Style::K) return int16_pair(u8int(p + 64 + 64 * i + 16), u8int(p + 64 + 64 * i + 48));
    else return int16_pair(high_nibble(p + 64 + 32 * i), high_nibble(p + 64 + 32 * i + 16));
  }
};
