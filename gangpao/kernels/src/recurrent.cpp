#include "recurrent.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gangpao {

namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

const DeltaKernels& kernels_now() {
  [[maybe_unused]] const std::string name = Runtime::get().kernels->name;
#if defined(__x86_64__)
  if (name == "avx512" || name == "amx") return avx512_delta;
  if (name == "avx2") return avx2_delta;
#elif defined(__aarch64__)
  if (name != "portable") return neon_delta;
#endif
  return portable_delta;
}

DeltaShape sizes(int k_heads, int v_heads, int k_dim, int v_dim, int taps) {
  DeltaShape s{};
  s.k_heads = k_heads, s.v_heads = v_heads, s.k_dim = k_dim, s.v_dim = v_dim, s.taps = taps;
  return s;
}

bool same_sizes(const DeltaShape& a, const DeltaShape& b) {
  return a.k_heads == b.k_heads && a.v_heads == b.v_heads && a.k_dim == b.k_dim && a.v_dim == b.v_dim && a.taps == b.taps;
}

size_t layer_floats(const DeltaShape& s) { return (s.state_floats() + s.tail_floats() + 15) / 16 * 16; }

}  // namespace

States::States(int l, int k_heads, int v_heads, int k_dim, int v_dim, int taps, int slots)
    : layers(l), num_slots(slots), shape(sizes(k_heads, v_heads, k_dim, v_dim, taps)) {
  require(l > 0 && k_heads > 0 && v_heads > 0 && v_heads % k_heads == 0 && slots > 0, "States: impossible sizes");
  require(k_dim > 0 && v_dim > 0 && k_dim % 16 == 0 && v_dim % 16 == 0, "States: widths of heads must be multiples of 16");
  require(taps >= 2 && taps <= 8, "States: a convolution of 2 to 8 tokens");
  layer_floats_ = layer_floats(shape);
  pages = std::make_shared<Pages>(layer_floats_ * size_t(l) * size_t(slots) * sizeof(float), false);
}

size_t States::slot_bytes(int layers, int k_heads, int v_heads, int k_dim, int v_dim, int taps) {
  return layer_floats(sizes(k_heads, v_heads, k_dim, v_dim, taps)) * size_t(layers) * sizeof(float);
}

float* States::at(int slot, int layer) const {
  require(slot >= 0 && slot < num_slots && layer >= 0 && layer < layers, "States: no such slot or layer");
  return reinterpret_cast<float*>(pages->data()) + layer_floats_ * (size_t(slot) * size_t(layers) + size_t(layer));
}

void StateRows::add(int begin, int n, int from, std::vector<std::pair<int, int>> commits, std::shared_ptr<Array> log, int log_rows,
                    int logged) {
  require(begin >= 0 && n > 0 && logged >= 0 && logged <= log_rows && (log || !logged), "StateRows: impossible tokens");
  int last = 1;
  for (const auto& [after, slot] : commits) {
    require(after >= last && after <= logged + n && slot >= 0, "StateRows: states must be taken behind tokens, in their order");
    last = after;
  }
  require(!commits.empty(), "StateRows: a text has a state of its own");
  texts.push_back({begin, n, from, logged, log_rows, std::move(log), std::move(commits)});
}

void delta_net(const Array& x, const StateRows& rows, const DeltaSpec& spec, States& states, int layer, Array& result, Activation& out) {
  const DeltaShape& s = spec.shape;
  require(same_sizes(s, states.shape), "delta_net: states of another shape");
  require(x.cols >= s.width() && result.cols == s.value_size(), "delta_net: rows of another width");
  struct Job {
    std::vector<const float*> in;
    std::vector<float*> out;
    std::vector<Commit> commits;
    DeltaRun run;
  };
  std::vector<Job> jobs(rows.texts.size());
  int total = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const StateRows::Text& text = rows.texts[i];
    Job& job = jobs[i];
    require(text.begin + text.n <= x.rows && text.begin + text.n <= result.rows, "delta_net: more tokens than rows");
    if (text.logged)
      require(text.log->cols >= s.width() && (layer + 1) * text.log_rows <= text.log->rows, "delta_net: a log of another shape");
    for (int t = 0; t < text.logged; ++t) job.in.push_back(text.log->row(layer * text.log_rows + t));
    for (int t = 0; t < text.n; ++t) job.in.push_back(x.row(text.begin + t)), job.out.push_back(result.row(text.begin + t));
    for (const auto& [after, slot] : text.commits) job.commits.push_back({after, states.at(slot, layer)});
    job.run = {job.in.data(), job.out.data(), text.logged, text.logged + text.n,
               text.from < 0 ? nullptr : states.at(text.from, layer), job.commits.data(), int(job.commits.size())};
    total = std::max(total, text.begin + text.n);
  }
  Runtime& rt = Runtime::get();
  const DeltaKernels& k = kernels_now();
  size_t bytes = k.scratch_floats(s) * sizeof(float);
  auto heads = [&](int begin, int end, int thread) {
    auto* scratch = reinterpret_cast<float*>(rt.scratch(thread, bytes));
    for (int i = begin; i < end; ++i) k.head(s, jobs[size_t(i / s.k_heads)].run, i % s.k_heads, scratch);
  };
  rt.pool->run(int(jobs.size()) * s.k_heads, 1, heads);
  quantize(result, total, out);
}

void sigmoid_gate(const Array& x, const Array& gates, int column, int n, Activation& out) {
  require(x.cols == out.cols && x.cols % 16 == 0 && n > 0 && n <= x.rows && n <= gates.rows, "sigmoid_gate: shapes differ");
  require(column >= 0 && column + x.cols <= gates.cols, "sigmoid_gate: there are no such columns");
  const DeltaKernels& k = kernels_now();
  for (int t = 0; t < n; ++t) k.gate(x.row(t), gates.row(t) + column, x.cols, x.row(t));
  quantize(x, n, out);
}

void geglu(const Array& gate_up, int n, Activation& out) {
  require(gate_up.cols == 2 * out.cols && out.cols % 16 == 0 && n > 0 && n <= gate_up.rows, "geglu: shapes differ");
  const DeltaKernels& k = kernels_now();
  for (int t = 0; t < n; ++t) k.geglu(gate_up.row(t), gate_up.row(t) + out.cols, out.cols, gate_up.row(t));
  Array first = gate_up;  // its left half
  first.cols = out.cols;
  quantize(first, n, out);
}

void add_normed(const Array& x, int n, const Array& weight, float eps, Array& out) {
  require(x.cols == out.cols && weight.cols == x.cols && n > 0 && n <= x.rows && n <= out.rows, "add_normed: shapes differ");
  const Kernels& k = *Runtime::get().kernels;
  for (int t = 0; t < n; ++t) {
    k.rmsnorm(x.row(t), weight.data, x.cols, eps, x.row(t));
    for (int i = 0; i < x.cols; ++i) out.row(t)[i] += x.row(t)[i];
  }
}

}  // namespace gangpao
