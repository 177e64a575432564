// Matrix product of 16 tokens with an unpacked panel on AMX tiles (int8). A block of 32 columns is one tile product; its
// 16 x 16 integers go through L1 to be scaled in the same float order as everywhere else.

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0, 1: sums (16 tokens x 16 rows); 2, 3: activations; 4, 5: weights of `k` columns.
static void tile_setup(int k) {
  static thread_local int current = 0;
  if (current == k) return;
  alignas(64) TileConfig c;
  for (int t = 0; t < 2; ++t) {
    c.rows[t] = 16, c.colsb[t] = 64;
    c.rows[2 + t] = 16, c.colsb[2 + t] = uint16_t(k);
    c.rows[4 + t] = uint8_t(k / 4), c.colsb[4 + t] = 64;
  }
  // g++ 12 tells its optimizer that this instruction reads 8 bytes; without this line it drops the other stores.
  asm volatile("" : : "r"(&c) : "memory");
  _tile_loadconfig(&c);
  current = k;
}

template <int EVEN>
static inline void tile_product(const uint8_t* w, const int8_t* x, int stride, int32_t* to) {
  if constexpr (EVEN) {
    _tile_zero(0);
    _tile_loadd(2, x, stride);
    _tile_loadd(4, w, 64);
    _tile_dpbssd(0, 2, 4);
    _tile_stored(0, to, 64);
  } else {
    _tile_zero(1);
    _tile_loadd(3, x, stride);
    _tile_loadd(5, w, 64);
    _tile_dpbssd(1, 3, 5);
    _tile_stored(1, to, 64);
  }
}

template <Style S>
static void tile_amx(const Packed& w, const Scratch& u, const Acts& a, const Out& out, int panel, int token) {
  constexpr int parts = halves(S) ? 2 : 1;
  constexpr int k = kBlock / parts;
  tile_setup(k);
  alignas(64) int32_t sums[2][256];
  F acc[16];
  for (auto& x : acc) x = fzero();
  const int8_t* x = a.q + size_t(token) * a.q_stride;
  int steps = w.cols / k;
  tile_product<1>(u.bytes, x, a.q_stride, sums[0]);
  for (int i = 0; i < steps; ++i) {
    if (i + 1 < steps) {
      const uint8_t* next = u.bytes + size_t(i + 1) * k * 16;
      if (i & 1) tile_product<1>(next, x + (i + 1) * k, a.q_stride, sums[0]);
      else tile_product<0>(next, x + (i + 1) * k, a.q_stride, sums[1]);
    }
    int b = i / parts, h = i % parts;
    const float* xs = a.scale + size_t(b) * a.token_stride + token;
    F scale = fload(u.scale + size_t(b) * 32 + 16 * h);
    const int32_t* c = sums[i & 1];
    for (int t = 0; t < 16; ++t) acc[t] = fma(tofloat(iload(c + 16 * t)), mul(scale, fset(xs[t])), acc[t]);
    if constexpr (has_min(S)) {
      F min = fload(u.min + size_t(b) * 32 + 16 * h);
      const float* xsum = a.sum + size_t(b) * a.token_stride + token;
      const int32_t* half = a.isum + size_t(2 * b + h) * a.token_stride + token;
      for (int t = 0; t < 16; ++t)
        acc[t] = fnma(min, fset(S == Style::K16_MIN ? xs[t] * float(half[t]) : xsum[t]), acc[t]);
    }
  }
  for (int t = 0; t < 16 && token + t < a.n; ++t) finish(w, out, panel, token + t, acc[t]);
}
