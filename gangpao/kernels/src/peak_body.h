// Included by each peak_*.cpp behind its SIMD layer: products of 4-bit weights with bytes, as matrix products have them.

template <int G>
static inline void peak_groups(const uint8_t* q, const int8_t* x, Dot<Values::U4>* dots) {
  if constexpr (G < 8) {
    B w = bload(q + 64 * G);
    for (int t = 0; t < kTokenTile; ++t) dots[t].template group<G>(w, x + 64 * t + 4 * G);
    peak_groups<G + 1>(q, x, dots);
  }
}

static int64_t multiply_adds(int rounds, const int8_t* x, int32_t* sum) {
  alignas(64) uint8_t q[64 * 8];
  for (int i = 0; i < 64 * 8; ++i) q[i] = uint8_t(x[i % kPeakBytes] & 15);
  I total = izero();
  for (int r = 0; r < rounds; ++r) {
    Dot<Values::U4> dots[kTokenTile];
    for (int t = 0; t < kTokenTile; ++t) dots[t].start(0, 0);
    peak_groups<0>(q, x + 64 * (r % (kPeakBytes / 64 - kTokenTile)), dots);
    for (int t = 0; t < kTokenTile; ++t) total = iadd(total, dots[t].total());
  }
  *sum = isum(total);
  return int64_t(rounds) * kTokenTile * 8 * 64;
}
