// How the bytes of a block (panel.h) become groups of weight bytes, and its header scales.

constexpr int two_bit_place(int g) { return (g & 2 ? 4 : 0) + (g & 4 ? 2 : 0); }  // of group g in its vector of 2-bit weights

// The vector of a 3-bit block whose bits 0..2 are group V and bits 3..5 group 4 + V; the fourth is put together from the others.
template <int V>
static inline B threes(const uint8_t* q) {
  if constexpr (V < 3) {
    return bload(q + 64 * V);
  } else {
    B low = band(shr<6>(bload(q)), 0x03), middle = band(shr<4>(bload(q + 64)), 0x0c), high = band(shr<2>(bload(q + 128)), 0x30);
    return bor(bor(low, middle), high);
  }
}

// The upper bits of group G of a matrix in two planes, where they belong in the byte, and LOWER in place of the others.
template <Values V, int G, int LOWER>
static inline B upper_bits(const uint8_t* q) {
  B nibbles = bload(q + 64 * (G & 3));
  if constexpr (V == Values::U6_SPLIT || V == Values::U6_UPPER) {
    if constexpr (G < 4) nibbles = shl<2>(nibbles);
    else nibbles = shr<2>(nibbles);
    return band_xor(nibbles, 0x3c, LOWER);
  } else {
    static_assert(V == Values::S8_SPLIT || V == Values::S8_UPPER);
    B top = bload(q + 256);
    if constexpr (G < 7) top = shl<7 - G>(top);
    if constexpr (G < 4) nibbles = shl<3>(nibbles);
    else nibbles = shr<1>(nibbles);
    return band_xor(bmix(top, nibbles, 0x80), 0xf8, LOWER ^ (kBiasedBytes ? 0 : 0x80));
  }
}

// Group G (0..7) of a block: 16 rows x 4 columns as bytes.
template <Values V, int G>
static inline B group_bytes(const uint8_t* q) {
  if constexpr (V == Values::S8) {
    return bload(q + 64 * G);
  } else if constexpr (V == Values::U2) {
    return band(shr<two_bit_place(G)>(bload(q + 64 * (G & 1))), 3);
  } else if constexpr (V == Values::U3) {
    return band(shr<G & 4 ? 3 : 0>(threes<G & 3>(q)), 7);
  } else if constexpr (V == Values::U4) {
    return band(shr<G & 4>(bload(q + 64 * (G & 3))), 15);
  } else if constexpr (V == Values::IQ4) {
    return coded(group_bytes<Values::U4, G>(q));
  } else if constexpr (V == Values::U5) {
    B high = bload(q + 256);
    if constexpr (G < 4) high = shl<4 - G>(high);
    else high = shr<G - 4>(high);
    return bor(group_bytes<Values::U4, G>(q), band(high, 16));
  } else if constexpr (V == Values::S8_UPPER || V == Values::U6_UPPER) {
    return upper_bits<V, G, V == Values::S8_UPPER ? 4 : 2>(q);
  } else {
    static_assert(V == Values::U6);
    B high = bload(q + 256 + 64 * (G & 1));
    constexpr int place = two_bit_place(G);
    if constexpr (place < 4) high = shl<4 - place>(high);
    else high = shr<place - 4>(high);
    return bor(group_bytes<Values::U4, G>(q), band(high, 48));
  }
}

// A block of weights: where it is, and where its lower bits are if it is in two planes.
struct Block {
  const uint8_t *q, *rest;
};
template <Values V>
static inline Block blocks_on(Block b, int n) {
  if constexpr (is_split(V)) return {b.q + n * block_bytes(V), b.rest + n * rest_bytes(V)};
  else return {b.q + n * block_bytes(V), nullptr};
}

template <Values V, int G>
static inline B group_bytes(Block b) {
  if constexpr (is_split(V)) return bor(upper_bits<V, G, 0>(b.q), group_bytes<rest_of(V), G>(b.rest));
  else return group_bytes<V, G>(b.q);
}

// By how many bits `lifted_bytes` leaves the weights of groups 4..7 above where they belong.
constexpr int lift_of(Values v) { return v == Values::U2 ? 2 : v == Values::U3 ? 3 : 0; }

// The same group with its weights left where a mask alone finds them, for products whose sums are shifted down once at their end.
template <Values V, int G>
static inline B lifted_bytes(Block b) {
  const uint8_t* q = b.q;
  if constexpr (V == Values::U2) return band(shr<G & 2 ? 4 : 0>(bload(q + 64 * (G & 1))), G & 4 ? 12 : 3);
  else if constexpr (V == Values::U3) return band(threes<G & 3>(q), G & 4 ? 56 : 7);
  else return group_bytes<V, G>(b);
}

constexpr bool halves(Style s) { return s == Style::K16 || s == Style::K16_MIN; }
constexpr bool has_min(Style s) { return s == Style::F16_MIN || s == Style::K || s == Style::K16_MIN; }
constexpr bool is_k(Style s) { return halves(s) || s == Style::K || s == Style::K32 || s == Style::K256; }

static inline const uint16_t* half_words(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

// Header of the F16 styles: w = scale * (q - zero) - min for block b.
template <Style S>
struct Header {
  const uint8_t* p;
  F scale(int b) const { return hload(half_words(p + (S == Style::F16 ? 32 : 64) * b)); }
  F min(int b) const { return sub(fzero(), hload(half_words(p + 64 * b + 32))); }
};

// Header of the K styles: w = d * scale * (q - zero) - dmin * minimum, scale and minimum integers of a block or half block, which
// come in pairs: of blocks 2i and 2i + 1, or of the halves of block i.
template <Style S>
struct KHeader {
  const uint8_t *floats, *p;
  KHeader() = default;
  KHeader(const uint8_t* panel, int s, const uint8_t* header)  // of superblock s
      : floats(d_first(S) ? panel + 32 * s : header), p(d_first(S) ? header : header + 64) {}
  static constexpr int pairs = halves(S) ? kSuper : S == Style::K256 ? 0 : kSuper / 2;
  F d() const { return hload(half_words(floats)); }
  F dmin() const { return hload(half_words(floats + 32)); }
  I scales(int i) const {
    if constexpr (S == Style::K) return six_bit_scales(p + 32 * i);
    else if constexpr (S == Style::K16_MIN) return low_nibbles(unsigned_pairs(p + 32 * i));
    else return signed_pairs(reinterpret_cast<const int8_t*>(p + 32 * i));
  }
  I minima(int i) const {
    if constexpr (S == Style::K) return six_bit_minima(p + 32 * i, p + 128 + 32 * (i / 2), i % 2);
    else return high_nibbles(unsigned_pairs(p + 32 * i));
  }
};
