// Which pages of a long context a token looks at. The mean of every 16 keys stands for them; a page is worth what its best mean is
// worth to the heads of a group together, each head's weights adding up to one (the idea of InfLLM v2, whose blocks are our pages).

constexpr int kMeans = kPage / 16;  // of a page

static inline float lanes_sum(F x) {
  alignas(64) float t[16];
  fstore(t, x);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  return t[0];
}

// Means of the keys of a whole page, [kMeans][head_dim]. scratch: kPage * head_dim floats.
static void page_means(const HeadCache& c, float* out, float* scratch) {
  int group = c.keys == Kept::INT8 ? kInt8Group : kInt4Group;
  unpack_keys(c, scratch);
  for (int tile = 0; tile < kMeans; ++tile)
    for (int d = 0; d < c.head_dim; ++d) {
      F keys = fload(scratch + (size_t(tile) * c.head_dim + d) * 16);
      if (c.keys != Kept::F16) keys = mul(keys, hload(c.k_scale + (size_t(tile) * (c.head_dim / group) + d / group) * 16));
      out[tile * c.head_dim + d] = lanes_sum(keys) * (1.0f / 16);
    }
}

// What each of `pages` pages is worth to the `heads` queries of one KV head. scratch: 2 * (kMeans * pages + 16) floats.
static void page_worth(const float* q, int heads, int head_dim, const float* const* means, int pages, float* worth, float* scratch) {
  int n = kMeans * pages, padded = (n + 15) / 16 * 16;
  float *score = scratch, *total = scratch + padded;
  for (int i = 0; i < padded; i += 16) fstore(total + i, fzero());
  for (int h = 0; h < heads; ++h, q += head_dim) {
    float peak = -1e30f;
    for (int i = 0; i < n; ++i) {
      const float* mean = means[i / kMeans] + size_t(i % kMeans) * head_dim;
      F sum = fzero();
      for (int d = 0; d < head_dim; d += 16) sum = fma(fload(q + d), fload(mean + d), sum);
      score[i] = lanes_sum(sum);
      peak = score[i] > peak ? score[i] : peak;
    }
    for (int i = n; i < padded; ++i) score[i] = -1e30f;
    F sum = fzero();
    for (int i = 0; i < padded; i += 16) {
      F weight = exp16(sub(fload(score + i), fset(peak)));
      fstore(score + i, weight);
      sum = add(sum, weight);
    }
    F share = fset(1.0f / lanes_sum(sum));
    for (int i = 0; i < padded; i += 16) fstore(total + i, fma(fload(score + i), share, fload(total + i)));
  }
  for (int p = 0; p < pages; ++p) {
    worth[p] = total[kMeans * p];
    for (int i = 1; i < kMeans; ++i) worth[p] = std::max(worth[p], total[kMeans * p + i]);
  }
}
