// Matrix products for many tokens on ARM with dotprod or i8mm. Four tokens times half of a panel (8 rows) are eight registers of
// sums, as many of totals or floats, and what is left holds weights and activations: with whole panels GCC keeps sums in memory.
//
// A panel is unpacked once for all tokens into signed bytes, the zero point taken off. sdot takes them as they lie in a panel. smmla
// takes 2 rows x 8 columns of each side and gives 2 tokens x 2 rows, so for i8mm weights are [8 columns][8 pairs of rows][2][8], tokens are
// laid out once a job as [pair of tokens][8 columns][2][8], and scales stand in the form of the result, [token][2 rows], as well.
// Integers are exact and every float step is that of linear.h and linear_k.h, so the bits are the same.
#pragma once

constexpr int kTileTokens = 4;

#ifdef GANGPAO_I8MM
constexpr int kCopies = 2;  // of a row's scale: for both tokens of a pair
static inline void store_rows(float* p, float32x4_t x) {
  vst1q_f32(p, vcombine_f32(vget_low_f32(x), vget_low_f32(x)));
  vst1q_f32(p + 4, vcombine_f32(vget_high_f32(x), vget_high_f32(x)));
}
#else
constexpr int kCopies = 1;
static inline void store_rows(float* p, float32x4_t x) { vst1q_f32(p, x); }
#endif
constexpr int kHalf = 8 * kCopies, kLine = 2 * kHalf;  // floats that belong to half of a panel, and to a panel
constexpr int kHalfBytes = 32 * kCopies;  // weights of half of a panel in a step: 8 columns with i8mm, else 4

static inline void store_rows(float* p, F x) {
  store_rows(p, x.a), store_rows(p + 4 * kCopies, x.b), store_rows(p + 8 * kCopies, x.c), store_rows(p + 12 * kCopies, x.d);
}
static inline F as_floats(I x) {
  return {vreinterpretq_f32_s32(x.a), vreinterpretq_f32_s32(x.b), vreinterpretq_f32_s32(x.c), vreinterpretq_f32_s32(x.d)};
}

// A panel unpacked, and the tokens. F16 styles: a scale and a minimum a block. K styles: scales of the parts of a superblock
// (blocks, or their halves), minima as bytes like weights, d and dmin.
struct Half {
  int8_t *weights, *tokens, *sums, *minima;
  float *scale, *min;
  Half(uint8_t* memory, int cols, int rows) {
    auto take = [&memory](size_t bytes) { return std::exchange(memory, memory + (bytes + 63) / 64 * 64); };
    weights = reinterpret_cast<int8_t*>(take(size_t(cols) * kPanelRows));
    scale = reinterpret_cast<float*>(take(size_t(cols) * 8));
    min = reinterpret_cast<float*>(take(size_t(cols) * 4));
    minima = reinterpret_cast<int8_t*>(take(size_t(cols)));
    tokens = reinterpret_cast<int8_t*>(take(size_t(cols) * rows));
    sums = reinterpret_cast<int8_t*>(take(size_t(cols) * rows / 8));
  }
  static size_t size(int cols, int rows) { return size_t(cols) * (kPanelRows + 13 + rows + (rows + 7) / 8) + 512; }
};

static inline int whole_tiles(int tokens) { return (tokens + kTileTokens - 1) / kTileTokens * kTileTokens; }

constexpr int parts_of(Style s) { return halves(s) ? 16 : s == Style::K256 ? 1 : 8; }
constexpr int sum_steps(Style s) { return halves(s) ? 2 : 1; }  // of eight parts

// Eight sums of activations (up to 32 * 127) are 128 * high + low, two signed bytes: minima are multiplied like weights.
static inline int8x8_t high_bytes(int16x8_t x) { return vshrn_n_s16(x, 7); }
static inline int8x8_t low_bytes(int16x8_t x) { return vmovn_s16(vandq_s16(x, vdupq_n_s16(127))); }
template <Style S>
static inline int16x8_t eight_sums(const Quants& x, int s, int token, int k) {
  return vld1q_s16(x.sums + (size_t(s) * x.token_stride + token) * kSums + (halves(S) ? 8 * k : kSumsOfBlocks));
}
// Minima of parts 2i and 2i + 1 of a superblock as two bytes a row, of rows 0..7 and of rows 8..15.
static inline uint16x8_t two_bytes(int32x4_t first, int32x4_t second) { return vreinterpretq_u16_s16(vsliq_n_s16(words(first), words(second), 8)); }

#ifdef GANGPAO_I8MM

// --- i8mm: pairs of tokens, pairs of rows --------------------------------------------------------------------------

static void lay_out_tokens(const Quants& x, int cols, int rows, int8_t* to) {
  for (int t = 0; t < rows; t += 2) {
    const int8_t *a = x.q + size_t(t) * x.q_stride, *b = a + x.q_stride;
    for (int c = 0; c < cols; c += 16, to += 32) {
      int64x2_t p = vreinterpretq_s64_s8(vld1q_s8(a + c)), q = vreinterpretq_s64_s8(vld1q_s8(b + c));
      vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(p, q)));
      vst1q_s8(to + 16, vreinterpretq_s8_s64(vzip2q_s64(p, q)));
    }
  }
}

// [pair of tokens][superblock][step][high, low][2][8]
template <Style S>
static void lay_out_sums(const Quants& x, int supers, int rows, int8_t* to) {
  for (int t = 0; t < rows; t += 2)
    for (int s = 0; s < supers; ++s)
      for (int k = 0; k < sum_steps(S); ++k, to += 32) {
        int16x8_t a = eight_sums<S>(x, s, t, k), b = eight_sums<S>(x, s, t + 1, k);
        vst1q_s8(to, vcombine_s8(high_bytes(a), high_bytes(b)));
        vst1q_s8(to + 16, vcombine_s8(low_bytes(a), low_bytes(b)));
      }
}

template <Values V, int STEP>
static inline void unpack_bytes(Block q, uint8_t minus, int8_t* to) {
  if constexpr (STEP < 4) {
    B l = bsub(group_bytes<V, 2 * STEP>(q), minus), r = bsub(group_bytes<V, 2 * STEP + 1>(q), minus);
    auto put = [&to](uint8x16_t x, uint8x16_t y) {
      uint32x4_t p = vreinterpretq_u32_u8(x), q = vreinterpretq_u32_u8(y);
      vst1q_s8(to, vreinterpretq_s8_u32(vzip1q_u32(p, q)));
      vst1q_s8(to + 16, vreinterpretq_s8_u32(vzip2q_u32(p, q)));
      to += 32;
    };
    put(l.a, r.a), put(l.b, r.b), put(l.c, r.c), put(l.d, r.d);
    unpack_bytes<V, STEP + 1>(q, minus, to);
  }
}

template <Style S>
static inline void unpack_minima(const KHeader<S>& h, int k, int8_t* to) {
  uint16x8x4_t first, last;
  for (int i = 0; i < 4; ++i) {
    I m = h.minima(4 * k + i);
    first.val[i] = two_bytes(m.a, m.c), last.val[i] = two_bytes(m.b, m.d);
  }
  vst4q_u16(reinterpret_cast<uint16_t*>(to), first);
  vst4q_u16(reinterpret_cast<uint16_t*>(to + 64), last);
}

// Sums [pair of tokens][pair of rows] of a tile.
struct TileSums {
  int32x4_t v[8];
  // COLUMNS columns; tokens of a pair lie `stride` bytes from the next pair's.
  template <int COLUMNS> void add(const int8_t* weights, const int8_t* x, size_t stride) {
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; c += 8, weights += 128, x += 16)
      for (int p = 0; p < 2; ++p) {
        int8x16_t two = vld1q_s8(x + p * stride);
        for (int j = 0; j < 4; ++j) v[4 * p + j] = vmmlaq_s32(v[4 * p + j], two, vld1q_s8(weights + 16 * j));
      }
  }
  // Minima (one step of eight parts) times the high (0) or low (1) bytes of sums.
  void add_minima(const int8_t* minima, const int8_t* sums, size_t stride, int low) { add<8>(minima, sums + 16 * low, stride); }
};

constexpr int kFactors = 4;  // registers of scales for half of a panel
static inline int factor_of(int i) { return i % 4; }
struct ByToken {
  float32x4_t v[2];
  explicit ByToken(const float* p) {
    float32x4_t x = vld1q_f32(p);
    v[0] = vzip1q_f32(x, x), v[1] = vzip2q_f32(x, x);
  }
  float32x4_t of(int i) const { return v[i / 4]; }
};

static inline void store_tile(const float32x4_t* v, int first, float (*to)[kPanelRows]) {
  for (int p = 0; p < 2; ++p)
    for (int j = 0; j < 4; j += 2) {
      float64x2_t a = vreinterpretq_f64_f32(v[4 * p + j]), b = vreinterpretq_f64_f32(v[4 * p + j + 1]);
      vst1q_f32(to[2 * p] + first + 2 * j, vreinterpretq_f32_f64(vzip1q_f64(a, b)));
      vst1q_f32(to[2 * p + 1] + first + 2 * j, vreinterpretq_f32_f64(vzip2q_f64(a, b)));
    }
}

static inline const int8_t* tokens_from(const Half& u, const Quants&, int cols, int token) { return u.tokens + size_t(token) * cols; }
static inline size_t token_step(const Quants&, int cols) { return 2 * size_t(cols); }
template <Style S> static inline size_t sum_stride(int supers) { return size_t(supers) * 32 * sum_steps(S); }
template <Style S> static inline const int8_t* sums_from(const Half& u, int supers, int token) { return u.sums + size_t(token / 2) * sum_stride<S>(supers); }
constexpr int kSumBytes = 32;  // of a step

#else

// --- dotprod: one register of 16 columns a token ---------------------------------------------------------------------

static void lay_out_tokens(const Quants&, int, int, int8_t*) {}

// [token][superblock][step][high, low][8]
template <Style S>
static void lay_out_sums(const Quants& x, int supers, int rows, int8_t* to) {
  for (int t = 0; t < rows; ++t)
    for (int s = 0; s < supers; ++s)
      for (int k = 0; k < sum_steps(S); ++k, to += 16) {
        int16x8_t a = eight_sums<S>(x, s, t, k);
        vst1q_s8(to, vcombine_s8(high_bytes(a), low_bytes(a)));
      }
}

template <Values V, int STEP>
static inline void unpack_bytes(Block q, uint8_t minus, int8_t* to) { unpack_groups<V, 2 * STEP>(q, reinterpret_cast<uint8_t*>(to), minus); }

template <Style S>
static inline void unpack_minima(const KHeader<S>& h, int k, int8_t* to) {
  for (int i = 0; i < 4; i += 2) {
    I m = h.minima(4 * k + i), n = h.minima(4 * k + i + 1);
    uint16x8x2_t first = {{two_bytes(m.a, m.c), two_bytes(n.a, n.c)}}, last = {{two_bytes(m.b, m.d), two_bytes(n.b, n.d)}};
    vst2q_u16(reinterpret_cast<uint16_t*>(to + 32 * i), first);
    vst2q_u16(reinterpret_cast<uint16_t*>(to + 32 * i + 32), last);
  }
}

// Sums [token][4 rows] of a tile.
struct TileSums {
  int32x4_t v[8];
  template <int LANE> void add4(const int8_t* weights, const int8x16_t* x) {
    int8x16_t l = vld1q_s8(weights), h = vld1q_s8(weights + 16);
    for (int t = 0; t < 4; ++t) {
      v[2 * t] = vdotq_laneq_s32(v[2 * t], l, x[t], LANE);
      v[2 * t + 1] = vdotq_laneq_s32(v[2 * t + 1], h, x[t], LANE);
    }
  }
  // COLUMNS columns; tokens lie `stride` bytes from one another.
  template <int COLUMNS> void add(const int8_t* weights, const int8_t* x, size_t stride) {
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; c += 16, weights += 256, x += 16) {
      const int8x16_t four[4] = {vld1q_s8(x), vld1q_s8(x + stride), vld1q_s8(x + 2 * stride), vld1q_s8(x + 3 * stride)};
      add4<0>(weights, four), add4<1>(weights + 64, four), add4<2>(weights + 128, four), add4<3>(weights + 192, four);
    }
  }
  void add_minima(const int8_t* minima, const int8_t* sums, size_t stride, int low) {
    const int8x16_t four[4] = {vld1q_s8(sums), vld1q_s8(sums + stride), vld1q_s8(sums + 2 * stride), vld1q_s8(sums + 3 * stride)};
    if (low) add4<2>(minima, four), add4<3>(minima + 64, four);
    else add4<0>(minima, four), add4<1>(minima + 64, four);
  }
};

constexpr int kFactors = 2;
static inline int factor_of(int i) { return i % 2; }
struct ByToken {
  float32x4_t v[4];
  explicit ByToken(const float* p) {
    float32x4_t x = vld1q_f32(p);
    v[0] = vdupq_laneq_f32(x, 0), v[1] = vdupq_laneq_f32(x, 1), v[2] = vdupq_laneq_f32(x, 2), v[3] = vdupq_laneq_f32(x, 3);
  }
  float32x4_t of(int i) const { return v[i / 2]; }
};

static inline void store_tile(const float32x4_t* v, int first, float (*to)[kPanelRows]) {
  for (int t = 0; t < 4; ++t) vst1q_f32(to[t] + first, v[2 * t]), vst1q_f32(to[t] + first + 4, v[2 * t + 1]);
}

static inline const int8_t* tokens_from(const Half&, const Quants& x, int, int token) { return x.q + size_t(token) * x.q_stride; }
static inline size_t token_step(const Quants& x, int) { return size_t(x.q_stride); }
template <Style S> static inline size_t sum_stride(int supers) { return size_t(supers) * 16 * sum_steps(S); }
template <Style S> static inline const int8_t* sums_from(const Half& u, int supers, int token) { return u.sums + size_t(token) * sum_stride<S>(supers); }
constexpr int kSumBytes = 16;

#endif

// --- both ----------------------------------------------------------------------------------------------------------

template <Values V, Style S>
static void unpack_for_tiles(const Packed& w, int panel, const Half& to) {
  Block p = panel_of<V>(w, panel);
  const uint8_t* begin = p.q;
  p.q += panel_head_bytes(S, w.cols / kBlock);
  uint8_t minus = uint8_t(needs_zero(V) ? w.format.zero : 0);
  int8_t *weights = to.weights, *minima = to.minima;
  float *scale = to.scale, *min = to.min;
  for (int blocks = w.cols / kBlock, b0 = 0; b0 < blocks; b0 += kSuper) {
    int n = std::min(blocks - b0, kSuper);
    if constexpr (is_k(S)) {
      KHeader<S> h(begin, b0 / kSuper, p.q);
      for (int i = 0; i < KHeader<S>::pairs; ++i, scale += 2 * kLine) {
        store_rows(scale, as_floats(firsts(h.scales(i))));
        store_rows(scale + kLine, as_floats(seconds(h.scales(i))));
      }
      if constexpr (has_min(S))
        for (int k = 0; k < sum_steps(S); ++k, minima += 128) unpack_minima<S>(h, k, minima);
      store_rows(min, h.d());
      if constexpr (has_min(S)) store_rows(min + kLine, h.dmin());
      min += 2 * kLine;
    } else {
      Header<S> h{p.q};
      for (int b = 0; b < n; ++b, scale += kLine, min += kLine) {
        store_rows(scale, h.scale(b));
        if constexpr (has_min(S)) store_rows(min, h.min(b));
      }
    }
    p.q += header_bytes(S, n);
    for (int b = 0; b < n; ++b, p = blocks_on<V>(p, 1), weights += 512) unpack_bytes<V, 0>(p, minus, weights);
  }
}

static inline TileSums no_sums() {
  int32x4_t z = vdupq_n_s32(0);
  return {{z, z, z, z, z, z, z, z}};
}

struct TileFloats {
  float32x4_t v[8];
  // v += sum * (scale * of tokens), or v -= that
  template <bool PLUS> void step(const TileSums& sum, const float* scale, const ByToken& x) {
    float32x4_t s[kFactors];
    for (int j = 0; j < kFactors; ++j) s[j] = vld1q_f32(scale + 4 * j);
    for (int i = 0; i < 8; ++i) {
      float32x4_t y = vcvtq_f32_s32(sum.v[i]), by = vmulq_f32(s[factor_of(i)], x.of(i));
      v[i] = PLUS ? vfmaq_f32(v[i], y, by) : vfmsq_f32(v[i], y, by);
    }
  }
  void subtract(const float* min, const ByToken& x) {
    for (int i = 0; i < 8; ++i) v[i] = vfmsq_f32(v[i], vld1q_f32(min + 4 * factor_of(i)), x.of(i));
  }
};

// One half of a panel times a tile of tokens, F16 styles.
template <Style S>
static inline void half_panel(const Half& u, const Acts& a, int cols, int token, int half, TileFloats& acc) {
  const int8_t *weights = u.weights + kHalfBytes * half, *x = tokens_from(u, a.blocks, cols, token);
  const float *scale = u.scale + kHalf * half, *min = u.min + kHalf * half;
  size_t at = size_t(token), stride = token_step(a.blocks, cols);
  for (int b = 0; b < cols / kBlock; ++b, weights += 512, x += kBlock * kCopies, scale += kLine, min += kLine, at += a.blocks.token_stride) {
    TileSums sum = no_sums();
    sum.add<kBlock>(weights, x, stride);
    acc.step<true>(sum, scale, ByToken(a.blocks.scale + at));
    if constexpr (has_min(S)) acc.subtract(min, ByToken(a.blocks.sum + at));
  }
}

// The same, K styles.
template <Style S>
static inline void half_panel_k(const Half& u, const Acts& a, int cols, int token, int half, TileFloats& acc) {
  constexpr int parts = parts_of(S), columns = kSuperColumns / parts;
  int supers = cols / kSuperColumns;
  const int8_t *weights = u.weights + kHalfBytes * half, *x = tokens_from(u, a.supers, cols, token);
  const int8_t *sums = sums_from<S>(u, supers, token), *minima = u.minima + kHalfBytes * half;
  const float *scale = u.scale + kHalf * half, *d = u.min + kHalf * half;
  size_t stride = token_step(a.supers, cols), at = size_t(token), from_sum = sum_stride<S>(supers);
  for (int s = 0; s < supers; ++s, d += 2 * kLine, at += a.supers.token_stride) {
    TileSums total = no_sums();
    for (int i = 0; i < parts; ++i, weights += 16 * columns, x += columns * kCopies) {
      if constexpr (S == Style::K256) {
        total.add<columns>(weights, x, stride);
      } else {
        TileSums part = no_sums();
        part.add<columns>(weights, x, stride);
        for (int j = 0; j < 8; ++j)
          total.v[j] = vmlaq_s32(total.v[j], part.v[j], vreinterpretq_s32_f32(vld1q_f32(scale + 4 * factor_of(j))));
        scale += kLine;
      }
    }
    ByToken by(a.supers.scale + at);
    acc.step<true>(total, d, by);
    if constexpr (has_min(S)) {
      TileSums below = no_sums();
      for (int k = 0; k < sum_steps(S); ++k) below.add_minima(minima + 128 * k, sums + kSumBytes * k, from_sum, 0);
      for (auto& v : below.v) v = vshlq_n_s32(v, 7);
      for (int k = 0; k < sum_steps(S); ++k) below.add_minima(minima + 128 * k, sums + kSumBytes * k, from_sum, 1);
      acc.step<false>(below, d + kLine, by);
      minima += 128 * sum_steps(S), sums += kSumBytes * sum_steps(S);
    }
  }
}

template <Style S>
static void tile_of_tokens(const Packed& w, const Half& u, const Acts& a, const Out& out, int panel, int token) {
  float y[kTileTokens][kPanelRows];
  for (int half = 0; half < 2; ++half) {
    float32x4_t z = vdupq_n_f32(0.0f);
    TileFloats acc = {{z, z, z, z, z, z, z, z}};
    if constexpr (is_k(S)) half_panel_k<S>(u, a, w.cols, token, half, acc);
    else half_panel<S>(u, a, w.cols, token, half, acc);
    store_tile(acc.v, 8 * half, y);
  }
  for (int t = 0; t < kTileTokens && token + t < a.n; ++t) finish(w, out, panel, token + t, fload(y[t]));
}

template <Values V, Style S>
static void panels_many(const Packed& w, const Acts& a, const Out& out, int begin, int end, uint8_t* scratch) {
  int rows = whole_tiles(a.n);
  Half u(scratch, w.cols, rows);
  lay_out_tokens(is_k(S) ? a.supers : a.blocks, w.cols, rows, u.tokens);
  if constexpr (is_k(S) && has_min(S)) lay_out_sums<S>(a.supers, w.cols / kSuperColumns, rows, u.sums);
  for (int panel = begin; panel < end; ++panel) {
    unpack_for_tiles<V, S>(w, panel, u);
    for (int t = 0; t < a.n; t += kTileTokens) tile_of_tokens<S>(w, u, a, out, panel, t);
  }
}

static size_t scratch_size(int cols, int tokens) { return std::max(Half::size(cols, whole_tiles(tokens)), float_scratch(cols)); }
