// What adapters add to a linear layer: out[row] += B (A x[row]), with A and B in int8 or F32.
//
// F32, in one order: lane l of a rank sums columns l, l + 16, ... one after the other, then fsum; times the row's scale, then times
// the rank's factor. An output sums its ranks one after the other from zero; that times the factor of its panel is added to what is
// there.
//
// Int8: x and A x become int16, kExact values sharing a scale (the largest of them is 32767), whose products with int8 sum up in
// int32 exactly. Lane l has columns 2 l and 2 l + 1 of every 32; what kExact values give in a lane is taken times their scale and
// added to the lane's float, then as above. An output has its ranks in a lane; what kExact of them give is taken times their scale,
// times the factor of the panel, and added to what is there.
//
// So tiles, rows beside, instruction sets and threads change no bit.

// Tiles of many rows share what is loaded and widened of A and B. AVX2 has 16 registers, and a vector of ours takes two.
constexpr int kRanksOfMany = kTokenTile == 8 ? 4 : 1;
constexpr int kPanelsOfMany = kTokenTile == 8 ? 4 : 1;
// One row alone: as many sums at once as hide how long each addition takes.
constexpr int kPanelsOfOne = kTokenTile == 8 ? 8 : 4;
constexpr int kRanksOfOne = kTokenTile == 8 ? 2 * kRankGroup : kRankGroup;

// Bytes that are asked for before their use: an adapter is read in many short runs, which hardware does not foresee.
constexpr int kLowRankAhead = 4096;

template <int Bytes>
static inline void prefetch_low_rank(const uint8_t* p) {
  for (int at = 0; at < Bytes; at += 64) __builtin_prefetch(p + kLowRankAhead + at);
}

// Rows of n floats as int16, [rows][n up to a multiple of 32], and a scale for each kExact of them.
struct Narrow {
  int16_t* values;
  float* scales;
  int stride, blocks;
  Narrow(uint8_t* scratch, int n) : values(reinterpret_cast<int16_t*>(scratch)), stride(narrow_stride(n)), blocks(exact_blocks(n)) {
    scales = reinterpret_cast<float*>(values + size_t(kRowsTogether) * stride);
  }
  void fill(const float* x, int x_stride, int n, int rows) {
    for (int t = 0; t < rows; ++t)
      for (int block = 0; block < blocks; ++block) {
        int begin = block * kExact, end = std::min(begin + kExact, n);
        const float* from = x + size_t(t) * x_stride;
        auto load = [&](int c) { return c + 16 <= end ? fload(from + c) : fill_from(fload(from + c), end - c, 0.0f); };
        F most = fzero();
        for (int c = begin; c < end; c += 16) most = fmax(most, fabs16(load(c)));
        float top = fhmax(most);
        F inverse = fset(inverse_of(top, 32767.0f));
        int16_t* to = values + size_t(t) * stride;
        int c = begin;
        for (; c < end; c += 16) s16store(to + c, toint(mul(load(c), inverse)));
        if (c % 32) s16store(to + c, izero());
        scales[size_t(t) * blocks + block] = top / 32767.0f;
      }
  }
};

// --- A x ---------------------------------------------------------------------------------------------------------

// R ranks from `first` on, of one group or of whole groups, for T rows.
template <int T, int R>
static inline void down_floats(const LowRankMatrices& m, int first, const float* x, int x_stride, float scale, float* h, int h_stride) {
  F acc[T][R];
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) acc[t][r] = fzero();
  int blocks = (m.cols + 15) / 16;
  auto* a = reinterpret_cast<const float*>(m.a);
  for (int c = 0; c < blocks; ++c) {
    F w[R];
    for (int r = 0; r < R; ++r) {
      int rank = first + r;
      w[r] = fload(a + ((size_t(rank / kRankGroup) * blocks + c) * kRankGroup + rank % kRankGroup) * 16);
    }
    for (int t = 0; t < T; ++t) {
      F v = fload(x + size_t(t) * x_stride + 16 * c);
      for (int r = 0; r < R; ++r) acc[t][r] = fma(w[r], v, acc[t][r]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) h[size_t(t) * h_stride + first + r] = fsum(acc[t][r]) * scale * m.factor[first + r];
}

template <int T, int R>
static inline void down_bytes(const LowRankMatrices& m, int first, const Narrow& x, float scale, float* h, int h_stride) {
  F acc[T][R];
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) acc[t][r] = fzero();
  size_t group = size_t(x.stride / 32) * kRankGroup * 32;
  const uint8_t* a = m.a + first / kRankGroup * group + first % kRankGroup * 32;
  for (int block = 0; block < x.blocks; ++block) {
    I sum[T][R];
    for (int t = 0; t < T; ++t)
      for (int r = 0; r < R; ++r) sum[t][r] = izero();
    for (int c = block * kExact, end = std::min(c + kExact, x.stride); c < end; c += 32, a += kRankGroup * 32) {
      I w[R];
      for (int r = 0; r < R; ++r) {
        const uint8_t* p = a + r / kRankGroup * group + r % kRankGroup * 32;
        if (T == 1 && r % kRankGroup == 0) prefetch_low_rank<kRankGroup * 32>(p);
        w[r] = signed_pairs(reinterpret_cast<const int8_t*>(p));
      }
      for (int t = 0; t < T; ++t) {
        I v = load_pairs(x.values + size_t(t) * x.stride + c);
        for (int r = 0; r < R; ++r) sum[t][r] = dot_pairs(sum[t][r], w[r], v);
      }
    }
    for (int t = 0; t < T; ++t)
      for (int r = 0; r < R; ++r) acc[t][r] = fma(tofloat(sum[t][r]), fset(x.scales[size_t(t) * x.blocks + block]), acc[t][r]);
  }
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) h[size_t(t) * h_stride + first + r] = fsum(acc[t][r]) * scale * m.factor[first + r];
}

// Groups [begin, end) of ranks for T rows, R ranks at a time and what is left by groups.
template <int T, int R>
static void down_rows(const LowRankMatrices& m, int begin, int end, const float* x, int x_stride, float scale, float* h, int h_stride,
                      uint8_t* scratch) {
  int first = begin * kRankGroup, last = end * kRankGroup;
  if (!m.bytes) {
    for (; first + R <= last; first += R) down_floats<T, R>(m, first, x, x_stride, scale, h, h_stride);
    if constexpr (R > kRankGroup)
      if (first < last) down_floats<T, kRankGroup>(m, first, x, x_stride, scale, h, h_stride);
    return;
  }
  Narrow narrow(scratch, m.cols);
  narrow.fill(x, x_stride, m.cols, T);
  for (; first + R <= last; first += R) down_bytes<T, R>(m, first, narrow, scale, h, h_stride);
  if constexpr (R > kRankGroup)
    if (first < last) down_bytes<T, kRankGroup>(m, first, narrow, scale, h, h_stride);
}

static void low_rank_down(const LowRankMatrices& m, int begin, int end, const float* x, int x_stride, int rows, float scale, float* h,
                          int h_stride, uint8_t* scratch) {
  int t = 0;
  for (; t + kRowsTogether <= rows; t += kRowsTogether)
    down_rows<kRowsTogether, kRanksOfMany>(m, begin, end, x + size_t(t) * x_stride, x_stride, scale, h + size_t(t) * h_stride, h_stride, scratch);
  for (; t < rows; ++t)
    down_rows<1, kRanksOfOne>(m, begin, end, x + size_t(t) * x_stride, x_stride, scale, h + size_t(t) * h_stride, h_stride, scratch);
}

// --- B h ---------------------------------------------------------------------------------------------------------

static inline void add_lanes(float* p, F y, int lanes) {
  if (lanes >= 16) return fstore(p, add(fload(p), y));
  float t[16];
  fstore(t, y);
  for (int i = 0; i < lanes; ++i) p[i] += t[i];
}

// P panels of 16 outputs for T rows.
template <int T, int P>
static inline void up_floats(const LowRankPart& b, int panel, const float* h, int h_stride, float* out, int out_stride) {
  F acc[T][P];
  for (int t = 0; t < T; ++t)
    for (int p = 0; p < P; ++p) acc[t][p] = fzero();
  size_t size = size_t(b.rank) * 16;
  auto* from = reinterpret_cast<const float*>(b.b) + size * panel;
  for (int r = 0; r < b.rank; ++r) {
    F w[P];
    for (int p = 0; p < P; ++p) w[p] = fload(from + size * p + size_t(r) * 16);
    for (int t = 0; t < T; ++t) {
      F v = fset(h[size_t(t) * h_stride + r]);
      for (int p = 0; p < P; ++p) acc[t][p] = fma(w[p], v, acc[t][p]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int p = 0; p < P; ++p) {
      F y = mul(acc[t][p], fset(b.factor[panel + p]));
      add_lanes(out + size_t(t) * out_stride + (panel + p) * 16, y, b.rows - (panel + p) * 16);
    }
}

template <int T, int P>
static inline void up_bytes(const LowRankPart& b, int panel, const Narrow& h, float* out, int out_stride) {
  int pairs = (b.rank + 1) / 2;
  size_t size = size_t(pairs) * 32;
  auto* from = reinterpret_cast<const int8_t*>(b.b) + size * panel;
  for (int block = 0; block < h.blocks; ++block) {
    I sum[T][P];
    for (int t = 0; t < T; ++t)
      for (int p = 0; p < P; ++p) sum[t][p] = izero();
    for (int r = block * (kExact / 2), end = std::min(r + kExact / 2, pairs); r < end; ++r) {
      I w[P];
      for (int p = 0; p < P; ++p) {
        const int8_t* at = from + size * p + size_t(r) * 32;
        if (T == 1 && r % 2 == 0) prefetch_low_rank<64>(reinterpret_cast<const uint8_t*>(at));
        w[p] = signed_pairs(at);
      }
      for (int t = 0; t < T; ++t) {
        int32_t v;
        std::memcpy(&v, h.values + size_t(t) * h.stride + 2 * r, sizeof v);
        for (int p = 0; p < P; ++p) sum[t][p] = add_pairs(sum[t][p], w[p], v);
      }
    }
    for (int t = 0; t < T; ++t)
      for (int p = 0; p < P; ++p) {
        F y = mul(mul(tofloat(sum[t][p]), fset(h.scales[size_t(t) * h.blocks + block])), fset(b.factor[panel + p]));
        add_lanes(out + size_t(t) * out_stride + (panel + p) * 16, y, b.rows - (panel + p) * 16);
      }
  }
}

// T rows, P panels at a time and what is left one by one.
template <int T, int P>
static void up_rows(bool bytes, const LowRankPart& b, int begin, int end, const float* h, int h_stride, float* out, int out_stride,
                    uint8_t* scratch) {
  int panel = begin;
  if (!bytes) {
    for (; panel + P <= end; panel += P) up_floats<T, P>(b, panel, h, h_stride, out, out_stride);
    for (; panel < end; ++panel) up_floats<T, 1>(b, panel, h, h_stride, out, out_stride);
    return;
  }
  Narrow narrow(scratch, b.rank);
  narrow.fill(h, h_stride, b.rank, T);
  for (; panel + P <= end; panel += P) up_bytes<T, P>(b, panel, narrow, out, out_stride);
  for (; panel < end; ++panel) up_bytes<T, 1>(b, panel, narrow, out, out_stride);
}

// Panels [begin, end) of a part; h and out begin at its first rank and output of the first row.
static void low_rank_up(bool bytes, const LowRankPart& b, int begin, int end, const float* h, int h_stride, int rows, float* out,
                        int out_stride, uint8_t* scratch) {
  int t = 0;
  for (; t + kRowsTogether <= rows; t += kRowsTogether)
    up_rows<kRowsTogether, kPanelsOfMany>(bytes, b, begin, end, h + size_t(t) * h_stride, h_stride, out + size_t(t) * out_stride, out_stride, scratch);
  for (; t < rows; ++t)
    up_rows<1, kPanelsOfOne>(bytes, b, begin, end, h + size_t(t) * h_stride, h_stride, out + size_t(t) * out_stride, out_stride, scratch);
}
