// Matrices in two planes (panel.h): how long the lower bits are, and what they can add.

// Of each row of panels [begin, end): the length of the vector of what lower bits are away from the value that stands for them, times
// scales, into rest; and a bound on the length of the row itself into whole.
template <Values V, Style S>
static void rest_norms(const Packed& w, int begin, int end, float* rest, float* whole) {
  constexpr int middle = V == Values::S8_SPLIT ? 4 : 2;
  constexpr float most = V == Values::S8_SPLIT ? 128.0f : 32.0f;
  int blocks = w.cols / kBlock;
  for (int panel = begin; panel < end; ++panel) {
    const uint8_t* first = w.data + size_t(panel) * w.panel_stride;
    const uint8_t *header = first + panel_head_bytes(S, blocks), *q = w.rest + size_t(panel) * w.rest_stride;
    float lower[kPanelRows] = {}, all[kPanelRows] = {};
    for (int b = 0; b < blocks; ++b, q += rest_bytes(V)) {
      if (b && b % kSuper == 0) header += header_bytes(S, kSuper) + kSuper * block_bytes(V);
      uint8_t bytes[512];
      unpack_groups<rest_of(V), 0>(Block{q, nullptr}, bytes, 0);
      for (uint8_t& x : bytes) x = uint8_t((x - middle) * (x - middle));
      for (int half = 0; half < 2; ++half) {
        uint8_t four[64];  // of four groups, at most 64
        const uint8_t* x = bytes + 256 * half;
        for (int i = 0; i < 64; ++i) four[i] = uint8_t(x[i] + x[64 + i] + x[128 + i] + x[192 + i]);
        float d[kPanelRows];
        fstore(d, hload(half_words(S == Style::F16 ? header + 32 * (b % kSuper) : first + 32 * (b / kSuper))));
        for (int r = 0; r < kPanelRows; ++r) {
          if constexpr (S == Style::K16) d[r] *= float(int8_t(header[32 * (b % kSuper) + 2 * r + half]));
          lower[r] += d[r] * d[r] * float(four[4 * r] + four[4 * r + 1] + four[4 * r + 2] + four[4 * r + 3]);
          all[r] += d[r] * d[r] * (most * most * kBlock / 2);
        }
      }
    }
    for (int r = 0; r < kPanelRows; ++r) {
      rest[size_t(panel) * kPanelRows + size_t(r)] = std::sqrt(lower[r]);
      whole[size_t(panel) * kPanelRows + size_t(r)] = std::sqrt(all[r]);
    }
  }
}

static void rest_norms_of(const Packed& w, int begin, int end, float* rest, float* whole) {
  if (w.format.values == Values::S8_SPLIT) rest_norms<Values::S8_SPLIT, Style::F16>(w, begin, end, rest, whole);
  else rest_norms<Values::U6_SPLIT, Style::K16>(w, begin, end, rest, whole);
}

// The largest value that a row of a panel surely has, and the largest that one may have: y from its upper bits, plus what the lower bits
// are known to give along `count` directions, and at most rest * outside + error more or less. Rows from `lanes` on do not count.
static void panel_bounds(const float* y, int lanes, const float* along, const float* how_far, int count, const float* rest, float outside,
                         float error, float* low, float* high) {
  const float none = -std::numeric_limits<float>::infinity();
  float part[kPanelRows];
  if (lanes < kPanelRows) {
    for (int i = 0; i < kPanelRows; ++i) part[i] = i < lanes ? y[i] : none;
    y = part;
  }
  F v = fload(y), far = fma(fload(rest), fset(outside), fset(error));
  for (int k = 0; k < count; ++k) v = fma(fset(how_far[k]), fload(along + kPanelRows * k), v);
  *low = fhmax(sub(v, far)), *high = fhmax(add(v, far));
}
