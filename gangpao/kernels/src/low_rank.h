// What adapters add to a linear layer: out[row] += B (A x[row]), in floats, with A and B in int8 or F32.
//
// One order: lane l of a rank sums columns l, l + 16, ... one after the other, then fsum; times the row's scale, then times the
// rank's factor. An output sums its ranks one after the other from zero; that times the factor of its panel is added to what is
// there. So tiles, rows beside, instruction sets and threads change no bit.

// Tiles of many rows share what is loaded and widened of A and B. AVX2 has 16 registers, and a vector of ours takes two.
constexpr int kRowsTogether = 4;
constexpr int kRanksOfMany = kTokenTile == 8 ? 4 : 1;
constexpr int kPanelsOfMany = kTokenTile == 8 ? 4 : 1;
constexpr int kPanelsOfOne = 4;

// Bytes that are asked for before their use: an adapter is read in many short runs, which hardware does not foresee.
constexpr int kLowRankAhead = 4096;

struct ByteWeights {
  using Element = int8_t;
  static F load(const uint8_t* p, size_t i) { return s8load(reinterpret_cast<const Element*>(p) + i); }
};
struct FloatWeights {
  using Element = float;
  static F load(const uint8_t* p, size_t i) { return fload(reinterpret_cast<const Element*>(p) + i); }
};

// Asks for what follows 16 * N elements from the i-th on.
template <class W, int N>
static inline void prefetch_low_rank(const uint8_t* p, size_t i) {
  constexpr int bytes = 16 * N * int(sizeof(typename W::Element));
  const uint8_t* from = p + i * sizeof(typename W::Element) + kLowRankAhead;
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
}

// R ranks from `first` on, of one group, for T rows.
template <class W, int T, int R>
static inline void down_tile(const LowRankMatrices& m, int first, const float* x, int x_stride, float scale, float* h, int h_stride) {
  F acc[T][R];
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) acc[t][r] = fzero();
  int blocks = (m.cols + 15) / 16;
  size_t at = (size_t(first / kRankGroup) * blocks * kRankGroup + first % kRankGroup) * 16;
  for (int c = 0; c < blocks; ++c, at += kRankGroup * 16) {
    if constexpr (T == 1) prefetch_low_rank<W, R>(m.a, at);
    F a[R];
    for (int r = 0; r < R; ++r) a[r] = W::load(m.a, at + 16 * r);
    for (int t = 0; t < T; ++t) {
      F v = fload(x + size_t(t) * x_stride + 16 * c);
      for (int r = 0; r < R; ++r) acc[t][r] = fma(a[r], v, acc[t][r]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) h[size_t(t) * h_stride + first + r] = fsum(acc[t][r]) * scale * m.factor[first + r];
}

template <class W>
static void down_group(const LowRankMatrices& m, int group, const float* x, int x_stride, int rows, float scale, float* h, int h_stride) {
  int first = group * kRankGroup, t = 0;
  for (; t + kRowsTogether <= rows; t += kRowsTogether)
    for (int r = 0; r < kRankGroup; r += kRanksOfMany)
      down_tile<W, kRowsTogether, kRanksOfMany>(m, first + r, x + size_t(t) * x_stride, x_stride, scale, h + size_t(t) * h_stride, h_stride);
  for (; t < rows; ++t)
    down_tile<W, 1, kRankGroup>(m, first, x + size_t(t) * x_stride, x_stride, scale, h + size_t(t) * h_stride, h_stride);
}

static void low_rank_down(const LowRankMatrices& m, int group, const float* x, int x_stride, int rows, float scale, float* h, int h_stride) {
  if (m.bytes) down_group<ByteWeights>(m, group, x, x_stride, rows, scale, h, h_stride);
  else down_group<FloatWeights>(m, group, x, x_stride, rows, scale, h, h_stride);
}

static inline void add_lanes(float* p, F y, int lanes) {
  if (lanes >= 16) return fstore(p, add(fload(p), y));
  float t[16];
  fstore(t, y);
  for (int i = 0; i < lanes; ++i) p[i] += t[i];
}

// P panels of 16 outputs for T rows.
template <class W, int T, int P>
static inline void up_tile(const LowRankPart& b, int panel, const float* h, int h_stride, float* out, int out_stride) {
  F acc[T][P];
  for (int t = 0; t < T; ++t)
    for (int p = 0; p < P; ++p) acc[t][p] = fzero();
  size_t size = size_t(b.rank) * 16, at = size * panel;
  for (int r = 0; r < b.rank; ++r) {
    if (T == 1 && r % 4 == 0)
      for (int p = 0; p < P; ++p) prefetch_low_rank<W, 4>(b.b, at + size * p + size_t(r) * 16);
    F w[P];
    for (int p = 0; p < P; ++p) w[p] = W::load(b.b, at + size * p + size_t(r) * 16);
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

// T rows, P panels at a time and what is left one by one.
template <class W, int T, int P>
static void up_rows(const LowRankPart& b, int begin, int end, const float* h, int h_stride, float* out, int out_stride) {
  int panel = begin;
  for (; panel + P <= end; panel += P) up_tile<W, T, P>(b, panel, h, h_stride, out, out_stride);
  for (; panel < end; ++panel) up_tile<W, T, 1>(b, panel, h, h_stride, out, out_stride);
}

template <class W>
static void up_panels(const LowRankPart& b, int begin, int end, const float* h, int h_stride, int rows, float* out, int out_stride) {
  int t = 0;
  for (; t + kRowsTogether <= rows; t += kRowsTogether)
    up_rows<W, kRowsTogether, kPanelsOfMany>(b, begin, end, h + size_t(t) * h_stride, h_stride, out + size_t(t) * out_stride, out_stride);
  for (; t < rows; ++t)
    up_rows<W, 1, kPanelsOfOne>(b, begin, end, h + size_t(t) * h_stride, h_stride, out + size_t(t) * out_stride, out_stride);
}

// Panels [begin, end) of a part; h and out begin at its first rank and output of the first row.
static void low_rank_up(bool bytes, const LowRankPart& b, int begin, int end, const float* h, int h_stride, int rows, float* out,
                        int out_stride) {
  if (bytes) up_panels<ByteWeights>(b, begin, end, h, h_stride, rows, out, out_stride);
  else up_panels<FloatWeights>(b, begin, end, h, h_stride, rows, out, out_stride);
}
