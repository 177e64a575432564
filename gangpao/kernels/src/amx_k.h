// K styles on AMX. A weight times its block's scale has up to 14 bits; as two planes of bytes, low and high, it goes through two
// products of 64 columns, and a whole superblock is summed inside the tiles: exact integers, one float step for 256 columns.
// (Scaling each block outside the tiles took 2 to 4 times as long: stores of tiles and products of 32 columns waste the unit.)

// low + (high << shift) = scale * (q - zero)
template <Values V, Style S>
struct Planes {
  static constexpr int count = V == Values::U2 ? 1 : 2, shift = S == Style::K ? 3 : 8;
  static constexpr bool signed_high = S == Style::K16 || S == Style::K32;
};

// 64 weights of one group: `s` has the scale of each row in both halves of its lane, `z` zero * scale.
template <Values V, Style S>
static inline void to_planes(I v, I s, I z, uint8_t* to) {
  constexpr int kPlane = kSuperColumns * kPanelRows;
  if constexpr (S == Style::K256) {
    _mm512_storeu_si512(to, v);  // the zero point is taken off in scale_planes
  } else if constexpr (S == Style::K16_MIN) {
    _mm512_storeu_si512(to, _mm512_mullo_epi16(v, s));  // at most 3 * 15: two bytes at once, no carry
  } else if constexpr (S == Style::K) {
    // The scale is cut, not the product: 31 * 7 fits into a byte, so again two bytes at once.
    I seven = _mm512_set1_epi16(7);
    _mm512_storeu_si512(to, _mm512_mullo_epi16(v, _mm512_and_si512(s, seven)));
    _mm512_storeu_si512(to + kPlane, _mm512_mullo_epi16(v, _mm512_srli_epi16(s, 3)));
  } else {
    I low = _mm512_set1_epi16(255);
    I even = _mm512_sub_epi16(_mm512_mullo_epi16(_mm512_and_si512(v, low), s), z);
    I odd = _mm512_sub_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(v, 8), s), z);
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_and_si512(even, low), _mm512_slli_epi16(odd, 8)));
    _mm512_storeu_si512(to + kPlane, _mm512_or_si512(_mm512_srli_epi16(even, 8), _mm512_andnot_si512(low, odd)));
  }
}

template <Values V, Style S, int G>
static inline void block_planes(Block q, const I* s, const I* z, uint8_t* to) {
  if constexpr (G < 8) {
    constexpr int part = halves(S) ? G / 4 : 0;
    to_planes<V, S>(group_bytes<V, G>(q).v, s[part], z[part], to + 64 * G);
    block_planes<V, S, G + 1>(q, s, z, to);
  }
}

template <Values V, Style S>
static void unpack_planes(const Packed& w, int panel, const Scratch& to) {
  Block p = panel_of<V>(w, panel);
  const uint8_t* begin = p.q;
  p.q += panel_head_bytes(S, w.cols / kBlock);
  I zero = _mm512_set1_epi16(short(w.format.zero));
  for (int s = 0; s < w.cols / kSuperColumns; ++s) {
    KHeader<S> h(begin, s, p.q);
    p.q += header_bytes(S, kSuper);
    unpack_header<S>(h, to, s);
    uint8_t* bytes = to.bytes + size_t(s) * 2 * kSuperColumns * kPanelRows;
    for (int b = 0; b < kSuper; ++b, p = blocks_on<V>(p, 1), bytes += kBlock * kPanelRows) {
      I scale[2] = {}, off[2] = {};
      for (int half = 0; half < 2 && S != Style::K256; ++half) {
        I pairs = h.scales(halves(S) ? b : b / 2);
        if (halves(S) ? half : b & 1) scale[half] = _mm512_srli_epi32(pairs, 16);
        else scale[half] = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff));
        scale[half] = _mm512_or_si512(scale[half], _mm512_slli_epi32(scale[half], 16));
        off[half] = _mm512_mullo_epi16(scale[half], zero);
      }
      block_planes<V, S, 0>(p, scale, off, bytes);
    }
  }
}

// 64 columns: one tile of tokens against two panels. Tiles 2p and 2p + 1 are the low and the high sums of panel p.
template <Values V, Style S>
static inline void plane_products(const uint8_t* const* w, const int8_t* x, int stride) {
  constexpr int kPlane = kSuperColumns * kPanelRows;
  using Form = Planes<V, S>;
  _tile_loadd(4, x, stride);
  _tile_loadd(5, w[0], 64);
  _tile_dpbsud(0, 4, 5);
  if constexpr (Form::count == 2) {
    _tile_loadd(6, w[0] + kPlane, 64);
    if constexpr (Form::signed_high) _tile_dpbssd(1, 4, 6);
    else _tile_dpbsud(1, 4, 6);
  }
  _tile_loadd(7, w[1], 64);
  _tile_dpbsud(2, 4, 7);
  if constexpr (Form::count == 2) {
    _tile_loadd(5, w[1] + kPlane, 64);
    if constexpr (Form::signed_high) _tile_dpbssd(3, 4, 5);
    else _tile_dpbsud(3, 4, 5);
  }
}

template <Values V, Style S>
static inline void store_planes(int32_t (*sums)[256]) {
  _tile_stored(0, sums[0], 64);
  _tile_stored(2, sums[2], 64);
  if constexpr (Planes<V, S>::count == 2) {
    _tile_stored(1, sums[1], 64);
    _tile_stored(3, sums[3], 64);
  }
}

// Float steps of `n` tokens from `first` of a tile.
template <Values V, Style S>
static inline void scale_planes(int32_t (*sums)[256], const Scratch& u, const Quants& in, int zero, int s, int token, int first, int n,
                                float* acc) {
  KeptHeader<S> h(u, s);
  Tokens x = tokens_at(in, s, token);
  for (int t = first; t < first + n; ++t) {
    I total = iload(sums[0] + 16 * t), below = izero();
    if constexpr (Planes<V, S>::count == 2)
      total = iadd(total, _mm512_slli_epi32(iload(sums[1] + 16 * t), Planes<V, S>::shift));
    if constexpr (S == Style::K256) total = iadd(total, iset(-zero * x.sums[t * kSums + kSumOfAll]));
    if constexpr (has_min(S))
      for (int i = 0; i < KHeader<S>::pairs; ++i) below = add_pairs(below, h.minima(i), x.template sum_pair<S>(t, i));
    fstore(acc + 16 * t, super_step<S>(fload(acc + 16 * t), total, below, h, x.scale[t]));
  }
}

// Two panels and all tokens; the products of one tile of tokens stand between the float steps of the tile before.
template <Values V, Style S>
static void k_panels_amx(const Packed& w, const Scratch* u, const Acts& a, float* acc) {
  constexpr int kSteps = kSuperColumns / 64, kRows = kTile * 2 / kSteps;
  const Quants& x = a.supers;
  tile_setup(64);
  int tiles = (a.n + kTile - 1) / kTile;
  alignas(64) int32_t sums[4][256];
  for (int s = 0; s < w.cols / kSuperColumns; ++s)
    for (int t = 0; t <= tiles; ++t) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int k = 0; k < kSteps; ++k) {
        if (t < tiles) {
          const int8_t* q = x.q + size_t(t) * kTile * x.q_stride + s * kSuperColumns + 64 * k;
          size_t at = size_t(s) * 2 * kSuperColumns * kPanelRows + size_t(k) * 64 * kPanelRows;
          const uint8_t* planes[2] = {u[0].bytes + at, u[1].bytes + at};
          plane_products<V, S>(planes, q, x.q_stride);
          prefetch_tile(q, x.q_stride);
        }
        if (t > 0) {
          int p = k * kRows / kTile;
          scale_planes<V, S>(sums + 2 * p, u[p], x, w.format.zero, s, (t - 1) * kTile, k * kRows % kTile, kRows,
                                acc + (size_t(p) * tiles + t - 1) * 256);
        }
      }
      if (t < tiles) store_planes<V, S>(sums);
    }
}
