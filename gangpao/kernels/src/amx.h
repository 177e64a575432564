// Matrix products of token tiles with unpacked panels on AMX (int8): what both kinds of styles share, and the F16 styles.
//
// Tile loads from L2 cost more than the products, so a superblock of weights stays in L1 while all tokens pass by, and each tile
// of tokens meets two panels. Float sums therefore live in memory, [panel][token][16 rows]. Integers go from tiles through L1 to
// be scaled in the same float order as everywhere else, while the tile unit is busy with the next product.

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0..3: sums (16 tokens x 16 rows); with k = 32 columns at once 4, 5: activations, 6, 7: weights; with k = 64 all are alike.
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

constexpr int kTile = 16;  // tokens

// Asks for the columns that the next tile of tokens will load.
static inline void prefetch_tile(const int8_t* x, int stride) {
  for (int t = 0; t < kTile; ++t) __builtin_prefetch(x + size_t(kTile + t) * stride);
}

static void finish_tiles(const Packed& w, const Out& out, int panel, int panels, int n, const float* acc, int padded) {
  for (int p = 0; p < panels; ++p)
    for (int t = 0; t < n; ++t) finish(w, out, panel + p, t, fload(acc + (size_t(p) * padded + t) * 16));
}

// One block of 32 columns; `odd` products use other tiles, so that two are under way. (The intrinsics want literal numbers.)
static inline void block_product(bool odd, const uint8_t* w, const int8_t* x, int stride, int32_t* sums) {
  if (odd) {
    _tile_loadd(7, w, 64);
    _tile_loadd(5, x, stride);
    _tile_zero(1);
    _tile_dpbssd(1, 5, 7);
    _tile_stored(1, sums, 64);
  } else {
    _tile_loadd(6, w, 64);
    _tile_loadd(4, x, stride);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_stored(0, sums, 64);
  }
}

template <Style S>
static inline void scale_block(const int32_t* sums, const Scratch& u, const Quants& x, int block, int token, F* acc) {
  size_t at = size_t(block) * x.token_stride + token;
  F scale = fload(u.scale + size_t(block) * 16);
  for (int t = 0; t < kTile; ++t) acc[t] = fma(tofloat(iload(sums + 16 * t)), mul(scale, fset(x.scale[at + t])), acc[t]);
  if constexpr (has_min(S)) {
    F min = fload(u.min + size_t(block) * 16);
    for (int t = 0; t < kTile; ++t) acc[t] = fnma(min, fset(x.sum[at + t]), acc[t]);
  }
}

// One superblock of `blocks` blocks: all tokens, P panels; products run two ahead of their scaling, block fastest.
template <Style S, int P>
static void super_amx(const Scratch* u, const Acts& a, int first, int blocks, float* sums_of) {
  const Quants& x = a.blocks;
  int tiles = (a.n + kTile - 1) / kTile, issued = 0, last = tiles * P * blocks;
  alignas(64) int32_t sums[4][256];
  int tile = 0, panel = 0, block = 0;
  auto issue = [&] {
    if (issued >= last) return;
    const uint8_t* w = u[panel].bytes + size_t(first + block) * 512;
    const int8_t* q = x.q + size_t(tile) * kTile * x.q_stride + (first + block) * kBlock;
    block_product(issued & 1, w, q, x.q_stride, sums[issued & 3]);
    if (panel == 0 && block % 2 == 0) prefetch_tile(q, x.q_stride);
    ++issued;
    if (++block == blocks) block = 0, panel = panel + 1 == P ? ++tile, 0 : panel + 1;
  };
  issue(), issue();
  for (int t = 0, i = 0; t < tiles; ++t)
    for (int p = 0; p < P; ++p) {
      float* rows = sums_of + (size_t(p) * tiles + t) * 256;
      F acc[kTile];
      for (int j = 0; j < kTile; ++j) acc[j] = fload(rows + 16 * j);
      for (int b = 0; b < blocks; ++b, ++i) {
        issue();
        scale_block<S>(sums[i & 3], u[p], x, first + b, t * kTile, acc);
      }
      for (int j = 0; j < kTile; ++j) fstore(rows + 16 * j, acc[j]);
    }
}

template <Style S, int P>
static void panels_amx(const Packed& w, const Scratch* u, const Acts& a, const Out& out, int panel, float* acc) {
  tile_setup(kBlock);
  int padded = (a.n + kTile - 1) / kTile * kTile, blocks = w.cols / kBlock;
  std::memset(acc, 0, size_t(P) * padded * 16 * sizeof(float));
  for (int b = 0; b < blocks; b += kSuper) super_amx<S, P>(u, a, b, std::min(kSuper, blocks - b), acc);
  finish_tiles(w, out, panel, P, a.n, acc, padded);
}
