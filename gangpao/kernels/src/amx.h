// Matrix product of token tiles with unpacked panels on AMX (int8). A block of 32 columns is one tile product; its 16 x 16
// integers go through L1 to be scaled in the same float order as everywhere else. Two panels and two tiles of 16
// tokens share what they load, because loading tiles costs more than multiplying them. The products of the next steps are
// issued between the scalings of the current ones, so that the tile unit and the vector unit work at the same time.

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0..3: sums (16 tokens x 16 rows); 4, 5: activations; 6, 7: weights; `k` columns at once.
static void tile_setup(int k) {
  static thread_local int current = 0;
  if (current == k) return;
  alignas(64) TileConfig c;
  for (int t = 0; t < 4; ++t) c.rows[t] = 16, c.colsb[t] = 64;
  for (int t = 4; t < 6; ++t) c.rows[t] = 16, c.colsb[t] = uint16_t(k);
  for (int t = 6; t < 8; ++t) c.rows[t] = uint8_t(k / 4), c.colsb[t] = 64;
  // g++ 12 tells its optimizer that this instruction reads 8 bytes; without this line it drops the other stores.
  asm volatile("" : : "r"(&c) : "memory");
  _tile_loadconfig(&c);
  current = k;
}

using Sums = int32_t[4][256];  // tile 2 * panel + token tile

// One step of k columns: P panels x Q token tiles.
template <int P, int Q>
static inline void tile_products(const uint8_t* w0, const uint8_t* w1, const int8_t* x, int stride, Sums& to) {
  _tile_loadd(6, w0, 64);
  _tile_loadd(4, x, stride);
  _tile_zero(0);
  _tile_dpbssd(0, 4, 6);
  if constexpr (Q == 2) {
    _tile_loadd(5, x + size_t(16) * stride, stride);
    _tile_zero(1);
    _tile_dpbssd(1, 5, 6);
  }
  if constexpr (P == 2) {
    _tile_loadd(7, w1, 64);
    _tile_zero(2);
    _tile_dpbssd(2, 4, 7);
  }
  if constexpr (P == 2 && Q == 2) {
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
  }
  // Stores last: one right behind its product would hold up the products that follow.
  _tile_stored(0, to[0], 64);
  if constexpr (Q == 2) _tile_stored(1, to[1], 64);
  if constexpr (P == 2) _tile_stored(2, to[2], 64);
  if constexpr (P == 2 && Q == 2) _tile_stored(3, to[3], 64);
}

// Adds `n` steps of one tile to its float sums. acc is [16 tokens][16 rows].
template <Style S>
static inline void tile_scale(const Sums* sums, int tile, int step, int n, const Scratch& u, const Acts& a, int token,
                              float* sum_rows) {
  constexpr int parts = halves(S) ? 2 : 1;
  F acc[16];
  for (int t = 0; t < 16; ++t) acc[t] = fload(sum_rows + 16 * t);
  for (int i = 0; i < n; ++i) {
    int b = (step + i) / parts, h = (step + i) % parts;
    const float* xs = a.scale + size_t(b) * a.token_stride + token;
    F scale = fload(u.scale + size_t(b) * 32 + 16 * h);
    const int32_t* c = sums[i][tile];
    if constexpr (has_min(S)) {
      F min = fload(u.min + size_t(b) * 32 + 16 * h);
      const float* xsum = a.sum + size_t(b) * a.token_stride + token;
      const int32_t* half = a.isum + size_t(2 * b + h) * a.token_stride + token;
      for (int t = 0; t < 16; ++t) {
        acc[t] = fma(tofloat(iload(c + 16 * t)), mul(scale, fset(xs[t])), acc[t]);
        acc[t] = fnma(min, fset(S == Style::K16_MIN ? xs[t] * float(half[t]) : xsum[t]), acc[t]);
      }
    } else {
      for (int t = 0; t < 16; ++t) acc[t] = fma(tofloat(iload(c + 16 * t)), mul(scale, fset(xs[t])), acc[t]);
    }
  }
  for (int t = 0; t < 16; ++t) fstore(sum_rows + 16 * t, acc[t]);
}

template <Style S, int P, int Q>
static void tiles_amx(const Packed& w, const Scratch* u, const Acts& a, const Out& out, int panel, int token) {
  constexpr int k = halves(S) ? kBlock / 2 : kBlock;
  constexpr int kDepth = 2;
  tile_setup(k);
  alignas(64) Sums sums[2][kDepth];
  alignas(64) float acc[4][256] = {};
  const int8_t* x = a.q + size_t(token) * a.q_stride;
  int steps = w.cols / k;  // even: a block count of one half-block style is whole superblocks
  auto issue = [&](int step, Sums& to) {
    tile_products<P, Q>(u[0].bytes + size_t(step) * k * 16, u[P - 1].bytes + size_t(step) * k * 16, x + step * k, a.q_stride, to);
  };
  for (int i = 0; i < kDepth && i < steps; ++i) issue(i, sums[0][i]);
  for (int s = 0, turn = 0; s < steps; s += kDepth, turn ^= 1) {
    int n = std::min(kDepth, steps - s);
    for (int p = 0, next = s + kDepth; p < P; ++p)
      for (int q = 0; q < Q; ++q) {
        int i = 2 * p + q;
        // Two of the tiles are each followed by one of the next steps; with fewer tiles the rest follows below.
        tile_scale<S>(sums[turn], i, s, n, u[p], a, token + 16 * q, acc[i]);
        if (next < std::min(s + 2 * kDepth, steps) && (P * Q < 4 || q == 0)) issue(next, sums[turn ^ 1][next - s - kDepth]), ++next;
        if (p == P - 1 && q == Q - 1)
          for (; next < std::min(s + 2 * kDepth, steps); ++next) issue(next, sums[turn ^ 1][next - s - kDepth]);
      }
  }
  for (int p = 0; p < P; ++p)
    for (int q = 0; q < Q; ++q)
      for (int t = 0; t < 16 && token + 16 * q + t < a.n; ++t)
        finish(w, out, panel + p, token + 16 * q + t, fload(acc[2 * p + q] + 16 * t));
}

template <Style S, int P>
static void panels_amx(const Packed& w, const Scratch* u, const Acts& a, const Out& out, int panel) {
  int t = 0;
  for (; t + 16 < a.n; t += 32) tiles_amx<S, P, 2>(w, u, a, out, panel, t);
  if (t < a.n) tiles_amx<S, P, 1>(w, u, a, out, panel, t);
}
