#include "attend.h"

#include <algorithm>
#include <cstring>

namespace gangpao {

namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

}  // namespace

PageMeans::PageMeans(const Cache& cache)
    : layers(cache.layers), kv_heads(cache.kv_heads), head_dim(cache.head_dim), num_pages(cache.num_pages),
      pages(std::make_shared<Pages>(page_bytes(layers, kv_heads, head_dim) * size_t(num_pages), false)),
      known_(size_t(layers) * size_t(num_pages)) {}

size_t PageMeans::page_bytes(int layers, int kv_heads, int head_dim) {
  return size_t(layers) * kv_heads * head_dim * (kPage / 16) * sizeof(float);
}

float* PageMeans::at(int layer, int page, int head) const {
  size_t place = (size_t(layer) * num_pages + page) * kv_heads + head;
  return reinterpret_cast<float*>(pages->data()) + place * head_dim * (kPage / 16);
}

void PageMeans::forget(int page) {
  require(page >= 0 && page < num_pages, "PageMeans: no such page");
  for (int layer = 0; layer < layers; ++layer) known_[size_t(layer) * num_pages + page] = 0;
}

bool PageMeans::learn(int layer, int page) {
  uint8_t& known = known_[size_t(layer) * num_pages + page];
  bool was = known;
  known = 1;
  return !was;
}

namespace {

std::vector<Place> places_of(const Array& qkv, const Rows& rows, const AttentionShape& s, const Cache& cache, int layer,
                             const Array& result) {
  int n = rows.size();
  require(n > 0 && n <= qkv.rows && result.rows >= n && result.cols == s.num_heads * s.head_dim, "attend: result has another shape");
  require(layer >= 0 && layer < cache.layers, "attend: outside the cache");
  require(cache.kv_heads == s.num_kv_heads && cache.head_dim == s.head_dim, "attend: cache of another shape");
  std::vector<Place> places = rows.places(cache.num_pages);
  for (Place& place : places) place.first = s.window ? std::max(0, place.position - s.window + 1) : 0;
  return places;
}

// places: of each row, or by_head of each row for the first KV head, then for the second, and so on.
// A piece of work is a KV head and a few tokens, so that its rows share what they load: as many as go through at once, or fewer
// where that makes too few pieces for the threads. Where it still does, it is cut by query heads as well.
void attend_at(const Array& qkv, const AttentionShape& s, const Cache& cache, int layer, const std::vector<Place>& places,
               bool by_head, Array& result) {
  Runtime& rt = Runtime::get();
  int n = int(places.size()) / (by_head ? s.num_kv_heads : 1), group = s.num_heads / s.num_kv_heads;
  int tokens = by_head ? 1 : std::max(1, kRowsAtOnce / group), threads = rt.pool->threads();
  auto pieces = [&] { return (n + tokens - 1) / tokens * s.num_kv_heads; };
  while (tokens > 1 && pieces() < 4 * threads) tokens = (tokens + 1) / 2;
  int cut = pieces() < threads ? group : 1;
  while (group % cut || (cut > 1 && pieces() * cut > 2 * threads)) --cut;
  int heads = group / cut;
  auto job = [&](int begin, int end, int thread) {
    auto* scratch = reinterpret_cast<float*>(rt.scratch(thread, size_t(2) * kPage * s.head_dim * sizeof(float)));
    for (int i = begin; i < end; ++i) {
      int part = i % (s.num_kv_heads * cut), t = i / (s.num_kv_heads * cut) * tokens;
      int h = part / cut, q = h * group + part % cut * heads;
      rt.kernels->attend(cache.head(layer, h), qkv.row(t) + size_t(q) * s.head_dim, qkv.stride,
                         result.row(t) + size_t(q) * s.head_dim, result.stride, heads, std::min(tokens, n - t),
                         &places[size_t(by_head ? h * n + t : t)], scratch);
    }
  };
  rt.pool->run(pieces() * cut, 1, job);
}

}  // namespace

void attend(const Array& qkv, const Rows& rows, const AttentionSpec& spec, const Cache& cache, int layer, Array& result,
            Activation& out) {
  std::vector<Place> places = places_of(qkv, rows, spec.shape, cache, layer, result);
  attend_at(qkv, spec.shape, cache, layer, places, false, result);
  quantize(result, rows.size(), out);
}

namespace {

// The pages between the first and the near ones, of a row that does not look at all of them.
struct Between {
  int begin, end;
};

Between between(const Place& place, const SparseRule& rule) {
  int end = place.position / kPage + 1 - rule.near;
  return place.position < rule.dense || end - rule.first <= rule.chosen ? Between{0, 0} : Between{rule.first, end};
}

void make_means(const std::vector<Place>& places, const SparseRule& rule, const Cache& cache, int layer, PageMeans& means) {
  Runtime& rt = Runtime::get();
  std::vector<int32_t> wanted;
  for (const Place& place : places) {
    auto [begin, end] = between(place, rule);
    for (int p = begin; p < end; ++p)
      if (means.learn(layer, place.pages[p])) wanted.push_back(place.pages[p]);
  }
  auto job = [&](int begin, int end, int thread) {
    auto* scratch = reinterpret_cast<float*>(rt.scratch(thread, size_t(kPage) * cache.head_dim * sizeof(float)));
    for (int i = begin; i < end; ++i)
      for (int h = 0; h < cache.kv_heads; ++h)
        rt.kernels->page_means(cache.head(layer, h).at(wanted[size_t(i)]), means.at(layer, wanted[size_t(i)], h), scratch);
  };
  rt.pool->run(int(wanted.size()), 1, job);
}

// The pages that a row looks at, in their order.
std::vector<int32_t> chosen_pages(const Place& place, const SparseRule& rule, Between range, const float* worth) {
  std::vector<int> order;
  for (int p = range.begin; p < range.end; ++p) order.push_back(p);
  auto better = [&](int a, int b) {
    float x = worth[a - range.begin], y = worth[b - range.begin];
    return x != y ? x > y : a < b;
  };
  std::nth_element(order.begin(), order.begin() + rule.chosen, order.end(), better);
  order.resize(size_t(rule.chosen));
  std::sort(order.begin(), order.end());
  std::vector<int32_t> out(place.pages, place.pages + range.begin);
  for (int p : order) out.push_back(place.pages[p]);
  out.insert(out.end(), place.pages + range.end, place.pages + place.position / kPage + 1);
  return out;
}

}  // namespace

void attend_sparse(const Array& qkv, const Rows& rows, const AttentionSpec& spec, const Cache& cache, int layer, PageMeans& means,
                   const SparseRule& rule, Array& result, Activation& out) {
  const AttentionShape& s = spec.shape;
  require(rule.first >= 0 && rule.near > 0 && rule.chosen > 0, "attend_sparse: a token looks at its own page and at a chosen one");
  require(means.layers == cache.layers && means.kv_heads == cache.kv_heads && means.head_dim == cache.head_dim &&
              means.num_pages == cache.num_pages, "attend_sparse: means of another cache");
  std::vector<Place> places = places_of(qkv, rows, s, cache, layer, result);
  int n = rows.size(), group = s.num_heads / s.num_kv_heads;
  bool all = true;
  for (const Place& place : places) all = all && between(place, rule).end == 0;
  if (all || s.window) {
    attend_at(qkv, s, cache, layer, places, false, result);
    return quantize(result, n, out);
  }
  make_means(places, rule, cache, layer, means);
  Runtime& rt = Runtime::get();
  std::vector<std::vector<int32_t>> lists(size_t(n) * s.num_kv_heads);
  std::vector<Place> found(lists.size());
  auto job = [&](int begin, int end, int thread) {
    for (int i = begin; i < end; ++i) {
      int h = i / n, t = i % n;
      Place place = places[size_t(t)];
      Between range = between(place, rule);
      found[size_t(i)] = place;
      if (range.end == 0) continue;
      int count = range.end - range.begin;
      std::vector<const float*> of(static_cast<size_t>(count));
      for (int p = 0; p < count; ++p) of[size_t(p)] = means.at(layer, place.pages[range.begin + p], h);
      size_t padded = size_t(kPage / 16) * count + 16;
      auto* scratch = reinterpret_cast<float*>(rt.scratch(thread, (2 * padded + size_t(count)) * sizeof(float)));
      float* worth = scratch + 2 * padded;
      rt.kernels->page_worth(qkv.row(t) + size_t(h) * group * s.head_dim, group, s.head_dim, of.data(), count, worth, scratch);
      for (int p = 0; p < count; ++p)
        if (!(worth[p] >= 0)) worth[p] = 0;  // no number: the order of the sort must hold
      lists[size_t(i)] = chosen_pages(place, rule, range, worth);
      found[size_t(i)].pages = lists[size_t(i)].data();
      found[size_t(i)].position = int(lists[size_t(i)].size() - 1) * kPage + place.position % kPage;
    }
  };
  rt.pool->run(n * s.num_kv_heads, 1, job);
  attend_at(qkv, s, cache, layer, found, true, result);
  quantize(result, n, out);
}

}  // namespace gangpao
