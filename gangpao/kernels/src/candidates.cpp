#include "candidates.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace gangpao {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double length_of(const std::vector<float>& x) {
  double sum = 0;
  for (float v : x) sum += double(v) * v;
  return std::sqrt(sum);
}

// out = G^-1 U for G = U U^T, by elimination; false where the rows of U depend on one another.
bool solve(const std::vector<float>& u, const std::vector<double>& lengths, int cols, std::vector<float>& out) {
  int count = int(lengths.size());
  std::vector<double> g(size_t(count * count)), right(u.begin(), u.end());
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < count; ++j)
      for (int c = 0; c < cols; ++c) g[size_t(i * count + j)] += double(u[size_t(i * cols + c)]) * u[size_t(j * cols + c)];
  for (int i = 0; i < count; ++i) {
    double pivot = g[size_t(i * count + i)];
    if (!(pivot > 1e-6 * lengths[size_t(i)] * lengths[size_t(i)])) return false;
    for (int j = 0; j < count; ++j) {
      if (j == i) continue;
      double f = g[size_t(j * count + i)] / pivot;
      for (int k = 0; k < count; ++k) g[size_t(j * count + k)] -= f * g[size_t(i * count + k)];
      for (int c = 0; c < cols; ++c) right[size_t(j * cols + c)] -= f * right[size_t(i * cols + c)];
    }
  }
  out.resize(u.size());
  for (int i = 0; i < count; ++i)
    for (int c = 0; c < cols; ++c) out[size_t(i * cols + c)] = float(right[size_t(i * cols + c)] / g[size_t(i * count + i)]);
  return true;
}

}  // namespace

Candidates::Candidates(std::shared_ptr<Linear> head) : head_(std::move(head)) {
  if (head_->parts.size() != 1 || !matrix().rest) throw std::invalid_argument("Candidates: one matrix in two planes is needed");
  const Packed& w = matrix();
  size_t rows = size_t(w.num_panels()) * kPanelRows;
  rest_.resize(rows);
  std::vector<float> whole(rows);
  Runtime& rt = Runtime::get();
  auto job = [&](int begin, int end, int) { rt.kernels->rest_norms(w, begin, end, rest_.data(), whole.data()); };
  rt.pool->run(w.num_panels(), 8, job);
  for (size_t i = 0; i < rows; ++i) {
    sound_ = sound_ && std::isfinite(rest_[i]) && std::isfinite(whole[i]);
    rest_[i] *= 1.0f + 1e-5f;
    whole_ = std::max(whole_, whole[i]);
  }
}

Packed Candidates::upper() const {
  Packed w = matrix();
  w.rest = nullptr;
  w.format.values = upper_of(w.format.values);
  return w;
}

std::vector<float> Candidates::activations(const Activation& x, int token) const {
  bool blocks = matrix().format.style == Style::F16;
  const Quants& q = blocks ? x.acts.blocks : x.acts.supers;
  int group = blocks ? kBlock : kSuperColumns;
  std::vector<float> out(static_cast<size_t>(x.cols));
  for (int c = 0; c < x.cols; ++c)
    out[size_t(c)] = q.scale[size_t(c / group) * q.token_stride + token] * q.q[size_t(token) * q.q_stride + c];
  return out;
}

void Candidates::learn(const Activation& x) {
  const Packed& w = matrix();
  if (x.cols != w.cols || !x.offers(*head_) || x.n < 1 || x.n > kDirections)
    throw std::invalid_argument("Candidates: directions of another width, or too many");
  count_ = 0;
  lengths_.clear();
  std::vector<float> u;
  for (int t = 0; t < x.n; ++t) {
    std::vector<float> one = activations(x, t);
    lengths_.push_back(length_of(one));
    u.insert(u.end(), one.begin(), one.end());
  }
  if (!sound_ || !solve(u, lengths_, w.cols, solve_)) return;
  Array all(x.n, w.rows), some(x.n, w.rows);
  Runtime& rt = Runtime::get();
  Packed part = upper();
  along_.assign(size_t(w.num_panels()) * size_t(x.n) * kPanelRows, 0.0f);
  auto job = [&](int begin, int end, int thread) {
    uint8_t* scratch = rt.scratch(thread, rt.kernels->scratch_bytes(w.cols, x.n));
    rt.kernels->linear(w, x.acts, {all.data, all.stride}, rt.ahead(w.format.bits()), begin, end, scratch);
    rt.kernels->linear(part, x.acts, {some.data, some.stride}, rt.ahead(part.format.bits()), begin, end, scratch);
    for (int p = begin; p < end; ++p)
      for (int t = 0; t < x.n; ++t)
        for (int i = 0, row = p * kPanelRows; i < kPanelRows && row < w.rows; ++i, ++row)
          along_[(size_t(p) * size_t(x.n) + size_t(t)) * kPanelRows + size_t(i)] = all.row(t)[row] - some.row(t)[row];
  };
  rt.pool->run(w.num_panels(), 2, job);
  directions_ = std::move(u);
  count_ = x.n;
}

Candidates::Reach Candidates::reach(const Activation& x, int token) const {
  std::vector<float> v = activations(x, token);
  size_t cols = size_t(x.cols);
  double length = length_of(v), all = length;
  Reach r;
  for (int k = 0; k < count_; ++k) {
    double a = 0;
    for (size_t c = 0; c < cols; ++c) a += double(solve_[size_t(k) * cols + c]) * v[c];
    r.along.push_back(float(a));
  }
  for (int k = 0; k < count_; ++k) {
    const float* u = directions_.data() + size_t(k) * cols;
    all += std::abs(double(r.along[size_t(k)])) * lengths_[size_t(k)];
    for (size_t c = 0; c < cols; ++c) v[c] -= r.along[size_t(k)] * u[c];
  }
  // Both products of a row, and those along directions, round once a block and a few times more; v was rounded to 2^-24 of `all`.
  double unit = std::ldexp(double(matrix().cols / kBlock + 16), -22);
  r.outside = float(length_of(v) * (1 + 1e-5) + all * std::ldexp(8.0, -22));
  r.error = float(unit * all * whole_);
  return r;
}

// without: rows that do not count.
void Candidates::bound(const Reach& r, int panel, const float* y, float* low, float* high, const std::vector<int32_t>* without) const {
  size_t p = size_t(panel);
  int lanes = std::min(kPanelRows, matrix().rows - panel * kPanelRows);
  float others[kPanelRows];
  if (without) {
    std::copy_n(y, lanes, others);
    for (int32_t row : *without) others[row - panel * kPanelRows] = -kInfinity;
    y = others;
  }
  const float* along = along_.data() + p * size_t(count_) * kPanelRows;
  Runtime::get().kernels->panel_bounds(y, lanes, along, r.along.data(), count_, rest_.data() + p * kPanelRows, r.outside, r.error, low, high);
}

// Marks the panels of a row of activations that take all bits. low, high: of all panels, from `bound`.
void Candidates::choose(const Reach& r, const Wanted& wanted, const float* y, float* low, float* high, std::vector<uint8_t>& chosen) const {
  auto [count, known, num_known] = wanted;
  std::vector<int32_t> ids(known, known + num_known);
  std::sort(ids.begin(), ids.end());
  if (!ids.empty() && (ids.front() < 0 || ids.back() >= matrix().rows)) throw std::invalid_argument("Candidates: there is no such row");
  for (size_t i = 0; i < ids.size();) {
    int p = ids[i] / kPanelRows;
    std::vector<int32_t> same;
    for (; i < ids.size() && ids[i] / kPanelRows == p; ++i) same.push_back(ids[i]);
    bound(r, p, y + p * kPanelRows, low + p, high + p, &same);
    chosen[size_t(p)] = 1;
  }
  // The count-th largest of what panels surely have is not above the count-th largest row.
  std::vector<float> sorted(low, low + chosen.size());
  std::nth_element(sorted.begin(), sorted.begin() + count - 1, sorted.end(), std::greater<float>());
  float floor = sorted[size_t(count) - 1];
  for (size_t p = 0; p < chosen.size(); ++p) chosen[p] |= !(high[p] < floor);
}

// All bits of the chosen panels, and -inf into the others.
void Candidates::fill(const Activation& x, Array& out, const std::vector<uint8_t>& chosen) const {
  const Packed& w = matrix();
  Runtime& rt = Runtime::get();
  auto job = [&](int begin, int end, int thread) {
    uint8_t* scratch = rt.scratch(thread, rt.kernels->scratch_bytes(w.cols, x.n));
    for (int p = begin, last; p < end; p = last) {
      for (last = p + 1; last < end && chosen[size_t(last)] == chosen[size_t(p)]; ++last) {}
      if (chosen[size_t(p)]) {
        rt.kernels->linear(w, x.acts, {out.data, out.stride}, {}, p, last, scratch);
        continue;
      }
      int row = p * kPanelRows, rows = std::min(last * kPanelRows, w.rows) - row;
      for (int t = 0; t < x.n; ++t) std::fill_n(out.row(t) + row, rows, -kInfinity);
    }
  };
  rt.pool->run(int(chosen.size()), 64, job);
}

int Candidates::find(const Activation& x, Array& out, const std::vector<Wanted>& wanted) {
  const Packed& w = matrix();
  if (x.cols != w.cols || !x.offers(*head_) || x.n < 1 || x.n > out.rows || w.rows > out.cols || wanted.size() != size_t(x.n))
    throw std::invalid_argument("Candidates: shapes differ");
  size_t n = size_t(x.n), panels = size_t(w.num_panels());
  auto everything = [&] {
    linear(*head_, x, out, false, 1.0f);
    return int(panels);
  };
  bool possible = sound_;
  std::vector<Reach> reaches;
  for (size_t t = 0; t < n; ++t) {
    reaches.push_back(reach(x, int(t)));
    possible = possible && std::isfinite(reaches[t].outside + reaches[t].error) && size_t(std::get<0>(wanted[t])) <= panels;
  }
  if (!possible) return everything();
  Runtime& rt = Runtime::get();
  std::vector<float> low(n * panels), high(n * panels);
  Packed part = upper();
  auto job = [&](int begin, int end, int thread) {
    uint8_t* scratch = rt.scratch(thread, rt.kernels->scratch_bytes(w.cols, x.n));
    rt.kernels->linear(part, x.acts, {out.data, out.stride}, rt.ahead(part.format.bits()), begin, end, scratch);
    for (size_t t = 0; t < n; ++t)
      for (int p = begin; p < end; ++p)
        bound(reaches[t], p, out.row(int(t)) + p * kPanelRows, &low[t * panels + size_t(p)], &high[t * panels + size_t(p)], nullptr);
  };
  rt.pool->run(int(panels), 2, job);
  std::vector<uint8_t> chosen(panels);
  for (size_t t = 0; t < n; ++t) choose(reaches[t], wanted[t], out.row(int(t)), &low[t * panels], &high[t * panels], chosen);
  int all = int(std::count(chosen.begin(), chosen.end(), 1));
  if (size_t(all) * 2 > panels) return everything();
  fill(x, out, chosen);
  return all;
}

}  // namespace gangpao
