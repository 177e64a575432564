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

// Two blocks of 32 columns, or one, of 16 tokens against two panels; tile 2p + b is panel p, block b.
template <int BLOCKS>
static inline void block_products(const uint8_t* w0, const uint8_t* w1, const int8_t* x, int stride) {
  _tile_loadd(4, x, stride);
  _tile_loadd(6, w0, 64);
  _tile_zero(0);
  _tile_dpbssd(0, 4, 6);
  _tile_loadd(7, w1, 64);
  _tile_zero(2);
  _tile_dpbssd(2, 4, 7);
  if constexpr (BLOCKS == 2) {
    _tile_loadd(5, x + kBlock, stride);
    _tile_loadd(6, w0 + 512, 64);
    _tile_zero(1);
    _tile_dpbssd(1, 5, 6);
    _tile_loadd(7, w1 + 512, 64);
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
  }
}

static inline void store_tiles(int blocks, int32_t (*sums)[256]) {
  _tile_stored(0, sums[0], 64);
  _tile_stored(2, sums[2], 64);
  if (blocks < 2) return;
  _tile_stored(1, sums[1], 64);
  _tile_stored(3, sums[3], 64);
}

// The float steps of one tile of tokens with one panel.
template <Style S>
static inline void scale_blocks(const int32_t (*sums)[256], const Scratch& u, const Quants& x, int block, int blocks, int token,
                                float* rows) {
  F acc[kTile];
  for (int t = 0; t < kTile; ++t) acc[t] = fload(rows + 16 * t);
  for (int b = 0; b < blocks; ++b) {
    size_t at = size_t(block + b) * x.token_stride + token;
    F scale = fload(u.scale + size_t(block + b) * 16);
    for (int t = 0; t < kTile; ++t) {
      acc[t] = fma(tofloat(iload(sums[b] + 16 * t)), mul(scale, fset(x.scale[at + t])), acc[t]);
      if constexpr (has_min(S)) acc[t] = fnma(fload(u.min + size_t(block + b) * 16), fset(x.sum[at + t]), acc[t]);
    }
  }
  for (int t = 0; t < kTile; ++t) fstore(rows + 16 * t, acc[t]);
}

// Two panels and all tokens, superblock after superblock. A store right behind its product would hold up what follows, so the
// float steps of one product stand between the next one and its stores.
template <Style S>
static void panels_amx(const Packed& w, const Scratch* u, const Acts& a, float* acc) {
  tile_setup(kBlock);
  const Quants& x = a.blocks;
  int tiles = (a.n + kTile - 1) / kTile, all = w.cols / kBlock;
  alignas(64) int32_t sums[4][256];
  int done_block = 0, done_blocks = 0, done_tile = 0;
  auto scale_last = [&] {
    for (int p = 0; p < 2; ++p)
      scale_blocks<S>(sums + 2 * p, u[p], x, done_block, done_blocks, done_tile * kTile, acc + (size_t(p) * tiles + done_tile) * 256);
  };
  for (int b0 = 0; b0 < all; b0 += kSuper)
    for (int t = 0; t < tiles; ++t)
      for (int b = b0; b < std::min(b0 + kSuper, all); b += 2) {
        const int8_t* q = x.q + size_t(t) * kTile * x.q_stride + b * kBlock;
        const uint8_t *w0 = u[0].bytes + size_t(b) * 512, *w1 = u[1].bytes + size_t(b) * 512;
        int blocks = std::min(2, all - b);
        if (blocks == 2) block_products<2>(w0, w1, q, x.q_stride);
        else block_products<1>(w0, w1, q, x.q_stride);
        prefetch_tile(q, x.q_stride);
        scale_last();
        store_tiles(blocks, sums);
        done_block = b, done_blocks = blocks, done_tile = t;
      }
  scale_last();
}
