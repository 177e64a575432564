// Python's view of the kernels. One call is one kernel; the interpreter lock is released inside.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "attend.h"
#include "candidates.h"
#include "pack.h"
#include "profile.h"
#include "quantize_rows.h"
#include "recurrent.h"
#include "runtime.h"
#include "training.h"

namespace nb = nanobind;
using namespace gangpao;

namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Target = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;  // of int8 or float32
using Order = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A numpy view [n, cols] of padded rows; it keeps the buffer alive.
nb::ndarray<nb::numpy, float> view(float* data, int n, int cols, int stride, const SharedPages& pages) {
  auto* keep = new SharedPages(pages);
  nb::capsule owner(keep, [](void* p) noexcept { delete static_cast<SharedPages*>(p); });
  size_t shape[2] = {size_t(n), size_t(cols)};
  int64_t strides[2] = {stride, 1};
  return nb::ndarray<nb::numpy, float>(data, 2, shape, owner, strides);
}

// Bytes that others own, to be read and written in place.
nb::ndarray<nb::numpy, uint8_t> bytes_view(uint8_t* data, size_t size, const SharedPages& pages) {
  nb::capsule owner(new SharedPages(pages), [](void* p) noexcept { delete static_cast<SharedPages*>(p); });
  return nb::ndarray<nb::numpy, uint8_t>(data, 1, &size, owner);
}

// Rows of weights as a new array uint8 [rows, row bytes].
nb::ndarray<nb::numpy, uint8_t> write_rows(const Rows2& values, const std::string& type, std::optional<Floats> importance, bool parallel) {
  const WrittenType* t = find_written(type);
  if (!t) throw std::invalid_argument("weights of type " + type + " cannot be written");
  size_t rows = values.shape(0), cols = values.shape(1), row_bytes = cols / size_t(t->block) * size_t(t->bytes);
  if (cols % size_t(t->block)) throw std::invalid_argument("quantize_rows: columns are not whole blocks");
  if (importance && importance->size() != cols)
    throw std::invalid_argument("importance must have a value for each of " + std::to_string(cols) + " columns");
  auto* out = new uint8_t[std::max<size_t>(rows * row_bytes, 1)];
  nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
  {
    nb::gil_scoped_release release;
    quantize_rows(values.data(), rows, cols, *t, importance ? importance->data() : nullptr, parallel, out);
  }
  size_t shape[2] = {rows, row_bytes};
  return nb::ndarray<nb::numpy, uint8_t>(out, 2, shape, owner);
}

std::vector<float> padded(const Floats& v, int n) {
  std::vector<float> r((size_t(n) + 15) / 16 * 16, 0.0f);
  if (v.size() != size_t(n)) throw std::invalid_argument("a vector has the wrong length");
  std::memcpy(r.data(), v.data(), size_t(n) * sizeof(float));
  return r;
}

std::shared_ptr<AttentionSpec> make_spec(int heads, int kv_heads, int head_dim, int rope_dim, float scale, float eps,
                                         std::optional<Floats> q_norm, std::optional<Floats> k_norm, int window) {
  if (heads <= 0 || kv_heads <= 0 || heads % kv_heads || head_dim <= 0 || head_dim % 16 || rope_dim < 0 || rope_dim > head_dim ||
      rope_dim % 2 || window < 0)
    throw std::invalid_argument("AttentionSpec: impossible head counts or sizes (head_dim must be a multiple of 16)");
  auto s = std::make_shared<AttentionSpec>();
  if (q_norm) s->q_norm = padded(*q_norm, head_dim);
  if (k_norm) s->k_norm = padded(*k_norm, head_dim);
  s->shape = {heads, kv_heads, head_dim, rope_dim, q_norm ? s->q_norm.data() : nullptr,
              k_norm ? s->k_norm.data() : nullptr, eps, scale, window};
  return s;
}

// sources: for each matrix of the layer A [rank, cols], B [rows, rank], a factor for each rank and one for each 16 rows; or none.
std::shared_ptr<LowRank> make_low_rank(const Linear& layer, const std::vector<std::optional<std::tuple<Weights, Weights, Floats, Floats>>>& sources,
                                       Arena& arena) {
  std::vector<LowRankSource> taken;
  int bits = 0;
  if (sources.size() != layer.parts.size())
    throw std::invalid_argument("LowRank: one pair of matrices (or None) for each matrix of the layer");
  for (size_t i = 0; i < sources.size(); ++i) {
    if (!sources[i]) {
      taken.push_back({nullptr, nullptr, nullptr, nullptr, 0});
      continue;
    }
    const auto& [a, b, rank_factor, panel_factor] = *sources[i];
    for (const nb::dlpack::dtype& type : {a.dtype(), b.dtype()}) {
      bool known = type == nb::dtype<int8_t>() || type == nb::dtype<float>();
      if (!known || (bits && type.bits != bits)) throw std::invalid_argument("LowRank: matrices of int8 or of float32, all of one type");
      bits = type.bits;
    }
    if (a.shape(0) == 0 || a.shape(0) != b.shape(1) || a.shape(1) != size_t(layer.cols) || b.shape(0) != size_t(layer.parts[i]->w.rows))
      throw std::invalid_argument("LowRank: A must be [rank, cols] and B [rows, rank] of its matrix");
    if (rank_factor.size() != a.shape(0) || panel_factor.size() != (b.shape(0) + 15) / 16)
      throw std::invalid_argument("LowRank: a factor for each rank and one for each 16 rows are needed");
    taken.push_back({a.data(), b.data(), rank_factor.data(), panel_factor.data(), int(a.shape(0))});
  }
  return std::make_shared<LowRank>(layer, taken, bits == 8, arena);
}

void set_bias(Matrix& m, const Floats& bias) {
  m.bias = padded(bias, m.w.rows);
  m.w.bias = m.bias.data();
}

// wanted: for each row of x how many of the largest, and the known ids.
int linear_largest(Candidates& c, const Activation& x, Array& out, const std::vector<std::pair<int, Order>>& wanted) {
  std::vector<Candidates::Wanted> asked;
  for (const auto& [count, known] : wanted) {
    if (count < 1) throw std::invalid_argument("Candidates: at least one row is wanted");
    asked.emplace_back(count, known.data(), known.size());
  }
  nb::gil_scoped_release release;
  Counted counted;
  return c.find(x, out, asked);
}

Gelu gelu_of(const std::string& kind) {
  if (kind == "gelu") return Gelu::ERF;
  if (kind == "gelu_tanh") return Gelu::TANH;
  if (kind == "quick_gelu") return Gelu::QUICK;
  throw std::invalid_argument("gelu: there is gelu (by erf), gelu_tanh and quick_gelu");
}

std::shared_ptr<DeltaSpec> make_delta_spec(int k_heads, int v_heads, int k_dim, int v_dim, const Rows2& filter, const Floats& a,
                                           const Floats& dt, const Floats& norm, float eps) {
  auto s = std::make_shared<DeltaSpec>();
  DeltaShape& x = s->shape;
  x.k_heads = k_heads, x.v_heads = v_heads, x.k_dim = k_dim, x.v_dim = v_dim, x.taps = int(filter.shape(0)), x.eps = eps;
  if (k_heads <= 0 || v_heads <= 0 || v_heads % k_heads || k_dim <= 0 || k_dim % 16 || v_dim <= 0 || v_dim % 16 || x.taps < 2 || x.taps > 8)
    throw std::invalid_argument("DeltaSpec: impossible heads or sizes (widths of heads must be multiples of 16)");
  if (filter.shape(1) != size_t(x.channels())) throw std::invalid_argument("DeltaSpec: the filter must be [taps, channels]");
  s->filter.assign(filter.data(), filter.data() + filter.size());
  s->a = padded(a, v_heads), s->dt = padded(dt, v_heads), s->norm = padded(norm, v_dim);
  x.filter = s->filter.data(), x.a = s->a.data(), x.dt = s->dt.data(), x.norm = s->norm.data();
  return s;
}

// The int8 form with a scale for `group` columns, as floats [n, cols].
nb::ndarray<nb::numpy, float> dequantized(const Activation& a, int group) {
  const Quants& x = group == kBlock ? a.acts.blocks : a.acts.supers;
  if ((group != kBlock && group != kSuperColumns) || !x.q)
    throw std::invalid_argument("this activation keeps no int8 values in groups of " + std::to_string(group));
  auto r = std::make_shared<Pages>(size_t(a.n) * a.cols * sizeof(float), false);
  auto* p = reinterpret_cast<float*>(r->data());
  for (int t = 0; t < a.n; ++t)
    for (int c = 0; c < a.cols; ++c)
      p[size_t(t) * a.cols + c] = x.scale[size_t(c / group) * x.token_stride + t] * x.q[size_t(t) * x.q_stride + c];
  return view(p, a.n, a.cols, a.cols, r);
}

// Everything that the arena handed out, as read-only views that keep it alive.
nb::list pieces_of(nb::handle self) {
  nb::list out;
  for (auto [data, bytes] : nb::cast<const Arena&>(self).pieces()) {
    size_t shape[1] = {bytes};
    out.append(nb::ndarray<nb::numpy, const uint8_t>(data, 1, shape, self));
  }
  return out;
}

}  // namespace

NB_MODULE(_native, m) {
  // A process that is stopped in the middle of an answer still holds models; the list of them would bury what it says last.
  nb::set_leak_warnings(false);
  using Release = nb::call_guard<nb::gil_scoped_release, Counted>;  // and the time of a kernel is counted
  nb::class_<Array>(m, "Array")
      .def(nb::init<int, int>(), nb::arg("rows"), nb::arg("cols"))
      .def_ro("rows", &Array::rows)
      .def_ro("cols", &Array::cols)
      .def("part", &Array::part, nb::arg("row"), nb::arg("rows"), nb::arg("col"), nb::arg("cols"))
      .def("numpy", [](Array& a) { return view(a.data, a.rows, a.cols, a.stride, a.pages); });
  nb::class_<Arena>(m, "Arena")
      .def(nb::init<>())
      .def_prop_ro("nbytes", &Arena::total)
      .def("fill", &Arena::fill, nb::arg("file"), nb::arg("nbytes"))
      .def("pieces", &pieces_of);
  nb::class_<Matrix>(m, "Matrix")
      .def_prop_ro("rows", [](const Matrix& a) { return a.w.rows; })
      .def_prop_ro("cols", [](const Matrix& a) { return a.w.cols; })
      .def_ro("nbytes", &Matrix::nbytes)
      .def("bytes", [](const Matrix& a) {
        return nb::bytes(reinterpret_cast<const char*>(a.w.data), a.nbytes);
      })
      .def("set_bias", &set_bias, nb::arg("bias"));
  nb::class_<Linear>(m, "Linear")
      .def(nb::init<std::vector<std::shared_ptr<Matrix>>>(), nb::arg("parts"))
      .def_ro("rows", &Linear::rows)
      .def_ro("cols", &Linear::cols)
      .def_ro("nbytes", &Linear::nbytes)
      .def_prop_ro("has_planes", [](const Linear& l) { return l.parts.size() == 1 && l.parts[0]->w.rest; });
  nb::class_<LowRank>(m, "LowRank")
      .def(nb::new_(&make_low_rank), nb::arg("layer"), nb::arg("sources"), nb::arg("arena"))
      .def_ro("ranks", &LowRank::ranks)
      .def_ro("nbytes", &LowRank::nbytes);
  nb::class_<LowRankTable>(m, "LowRankTable")
      .def(nb::init<>())
      .def("set", &LowRankTable::set, nb::arg("adapter"), nb::arg("low_rank").none());
  nb::class_<AdapterRuns>(m, "AdapterRuns")
      .def(nb::init<>())
      .def("clear", &AdapterRuns::clear)
      .def("add", &AdapterRuns::add, nb::arg("adapter"), nb::arg("begin"), nb::arg("end"), nb::arg("scale") = 1.0f)
      .def("__len__", [](const AdapterRuns& r) { return r.runs.size(); });
  nb::class_<Activation>(m, "Activation")
      .def(nb::init<int, int, const std::vector<std::shared_ptr<Linear>>&, bool>(), nb::arg("capacity"), nb::arg("cols"),
           nb::arg("readers"), nb::arg("keep_float") = false)
      .def_ro("n", &Activation::n)
      .def_ro("cols", &Activation::cols)
      .def_ro("has_blocks", &Activation::blocks)
      .def_prop_ro("nbytes", [](const Activation& a) { return a.pages->size(); })
      .def("floats", [](Activation& a) {
        if (!a.floats) throw std::invalid_argument("this activation keeps no floats");
        return view(const_cast<float*>(a.acts.f), a.n, a.cols, a.acts.f_stride, a.pages);
      })
      .def("dequantized", &dequantized, nb::arg("group"));
  nb::class_<Candidates>(m, "Candidates")
      .def(nb::init<std::shared_ptr<Linear>>(), nb::arg("head"))
      .def_prop_ro("panels", &Candidates::panels)
      .def_prop_ro("sound", &Candidates::sound)
      .def("learn", &Candidates::learn, nb::arg("x"), Release())
      .def("bytes_of", &Candidates::bytes_of, nb::arg("panels"));
  nb::class_<Cache>(m, "Cache")
      .def(nb::init<int, int, int, int, int, int>(), nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("num_pages"),
           nb::arg("key_bits"), nb::arg("value_bits"))
      .def_ro("num_pages", &Cache::num_pages)
      .def_prop_ro("nbytes", [](const Cache& c) { return c.pages->size(); })
      .def("copy_page", &Cache::copy_page, nb::arg("source"), nb::arg("target"), Release())
      .def("page", [](const Cache& c, int i) { return bytes_view(c.page(i), c.bytes_of_page(), c.pages); }, nb::arg("page"))
      .def_static("page_bytes", &Cache::page_bytes, nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("key_bits"),
                  nb::arg("value_bits"));
  nb::class_<Rows>(m, "Rows")
      .def(nb::init<>())
      .def("clear", &Rows::clear)
      .def("add", &Rows::add, nb::arg("pages"), nb::arg("start"), nb::arg("n"))
      .def("__len__", &Rows::size);
  m.attr("PAGE") = kPage;
  nb::class_<AttentionSpec>(m, "AttentionSpec");
  m.def("attention_spec", &make_spec, nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("rope_dim"),
        nb::arg("scale"), nb::arg("eps"), nb::arg("q_norm") = nb::none(), nb::arg("k_norm") = nb::none(), nb::arg("window") = 0);
  m.def("pack",
        [](const Bytes& raw, const std::string& type, int rows, int cols, std::optional<Order> order, Arena& arena, bool planes) {
          if (order && order->size() != size_t(rows)) throw std::invalid_argument("pack: row order has the wrong length");
          const int32_t* o = order ? order->data() : nullptr;
          nb::gil_scoped_release release;
          return pack(raw.data(), raw.size(), type, rows, cols, o, arena, planes);
        },
        nb::arg("raw"), nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("order").none(), nb::arg("arena"),
        nb::arg("planes") = false);
  m.def("dequantize",
        [](const Bytes& raw, const std::string& type, int rows, int cols, const Target& out, int begin, int end,
           std::optional<Order> order, bool parallel) {
          size_t count = order ? order->size() : size_t(std::max(rows, 0));
          if (begin < 0 || end < begin || out.shape(0) != size_t(end - begin) || out.shape(1) != size_t(cols))
            throw std::invalid_argument("dequantize: out must be float32 [end - begin, cols]");
          const int32_t* o = order ? order->data() : nullptr;
          nb::gil_scoped_release release;
          dequantize(raw.data(), raw.size(), type, rows, cols, o, count, begin, end, out.data(), parallel);
        },
        nb::arg("raw"), nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("out"), nb::arg("begin"), nb::arg("end"),
        nb::arg("order") = nb::none(), nb::arg("parallel") = true);
  m.def("quantize_rows", &write_rows, nb::arg("values"), nb::arg("type"), nb::arg("importance") = nb::none(),
        nb::arg("parallel") = true);
  m.def("packed_bytes", &packed_bytes, nb::arg("type"), nb::arg("rows"), nb::arg("cols"));
  m.def("weight_types", [] {
    std::vector<std::tuple<std::string, int, int, std::string, std::string, int>> out;
    for (const SourceType& t : all_sources())
      out.emplace_back(t.name, t.block, t.bytes, values_name(t.format.values), style_name(t.format.style), t.format.zero);
    return out;
  });
  m.def("linear", &linear, nb::arg("w"), nb::arg("x"), nb::arg("out"), nb::arg("add") = false, nb::arg("scale") = 1.0f,
        nb::arg("table") = nb::none(), nb::arg("runs") = nb::none(), Release());
  m.def("linear_largest", &linear_largest, nb::arg("candidates"), nb::arg("x"), nb::arg("out"), nb::arg("wanted"));
  m.def("rmsnorm", &rmsnorm, nb::arg("x"), nb::arg("n"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"), Release());
  m.def("quantize", &quantize, nb::arg("x"), nb::arg("n"), nb::arg("out"), Release());
  m.def("swiglu", &swiglu, nb::arg("gate_up"), nb::arg("n"), nb::arg("out"), Release());
  m.def("layernorm", &layernorm, nb::arg("x"), nb::arg("n"), nb::arg("weight"), nb::arg("bias"), nb::arg("eps"), nb::arg("out"),
        Release());
  m.def("gelu",
        [](const Array& x, int n, const std::string& kind, Activation& out) {
          Gelu which = gelu_of(kind);
          nb::gil_scoped_release release;
          gelu(x, n, which, out);
        },
        nb::arg("x"), nb::arg("n"), nb::arg("kind"), nb::arg("out"));
  m.def("attend_all", &attend_all, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("heads"), nb::arg("scale"), nb::arg("window"),
        nb::arg("out"), Release());
  m.def("exp_totals",
        [](const Array& x, int n, const Table& coarse, const Table& fine) {
          if (coarse.size() < 45 * 64 || fine.size() != 1024) throw std::invalid_argument("exp_totals: tables of another size");
          nb::gil_scoped_release release;
          return exp_totals(x, n, coarse.data(), fine.data());
        },
        nb::arg("x"), nb::arg("n"), nb::arg("coarse"), nb::arg("fine"));
  m.def("rope_append", &rope_append, nb::arg("qkv"), nb::arg("rows"), nb::arg("spec"), nb::arg("cos"), nb::arg("sin"),
        nb::arg("cache"), nb::arg("layer"), Release());
  m.def("attend", &attend, nb::arg("qkv"), nb::arg("rows"), nb::arg("spec"), nb::arg("cache"), nb::arg("layer"),
        nb::arg("result"), nb::arg("out"), Release());
  nb::class_<PageMeans>(m, "PageMeans")
      .def(nb::init<const Cache&>(), nb::arg("cache"))
      .def_prop_ro("nbytes", [](const PageMeans& p) { return p.pages->size(); })
      .def("forget", &PageMeans::forget, nb::arg("page"))
      .def_static("page_bytes", &PageMeans::page_bytes, nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"));
  nb::class_<SparseRule>(m, "SparseRule")
      .def(nb::init<int, int, int, int>(), nb::arg("dense"), nb::arg("first"), nb::arg("near"), nb::arg("chosen"));
  m.def("attend_sparse", &attend_sparse, nb::arg("qkv"), nb::arg("rows"), nb::arg("spec"), nb::arg("cache"), nb::arg("layer"),
        nb::arg("means"), nb::arg("rule"), nb::arg("result"), nb::arg("out"), Release());
  nb::class_<DeltaSpec>(m, "DeltaSpec");
  m.def("delta_spec", &make_delta_spec, nb::arg("k_heads"), nb::arg("v_heads"), nb::arg("k_dim"), nb::arg("v_dim"), nb::arg("filter"),
        nb::arg("a"), nb::arg("dt"), nb::arg("norm"), nb::arg("eps"));
  nb::class_<States>(m, "States")
      .def(nb::init<int, int, int, int, int, int, int>(), nb::arg("layers"), nb::arg("k_heads"), nb::arg("v_heads"), nb::arg("k_dim"),
           nb::arg("v_dim"), nb::arg("taps"), nb::arg("num_slots"))
      .def_ro("num_slots", &States::num_slots)
      .def("slot", [](const States& s, int i) {
        return bytes_view(reinterpret_cast<uint8_t*>(s.at(i, 0)), s.pages->size() / size_t(s.num_slots), s.pages);
      }, nb::arg("slot"))
      .def_prop_ro("nbytes", [](const States& s) { return s.pages->size(); })
      .def_static("slot_bytes", &States::slot_bytes, nb::arg("layers"), nb::arg("k_heads"), nb::arg("v_heads"), nb::arg("k_dim"),
                  nb::arg("v_dim"), nb::arg("taps"));
  nb::class_<StateRows>(m, "StateRows")
      .def(nb::init<>())
      .def("clear", &StateRows::clear)
      .def("add", &StateRows::add, nb::arg("begin"), nb::arg("n"), nb::arg("source"), nb::arg("commits"), nb::arg("log").none() = nb::none(),
           nb::arg("log_rows") = 0, nb::arg("logged") = 0)
      .def("__len__", [](const StateRows& r) { return r.texts.size(); });
  m.def("delta_net", &delta_net, nb::arg("x"), nb::arg("rows"), nb::arg("spec"), nb::arg("states"), nb::arg("layer"), nb::arg("result"),
        nb::arg("out"), Release());
  m.def("sigmoid_gate", &sigmoid_gate, nb::arg("x"), nb::arg("gates"), nb::arg("column"), nb::arg("n"), nb::arg("out"), Release());
  m.def("geglu", &geglu, nb::arg("gate_up"), nb::arg("n"), nb::arg("out"), Release());
  m.def("add_normed", &add_normed, nb::arg("x"), nb::arg("n"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"), Release());
  bind_training(m);
  m.def("set_num_threads", [](int n) { Runtime::get().set_threads(n); }, nb::arg("n"));
  m.def("num_threads", [] { return Runtime::get().pool->threads(); });
  m.def("isa_name", [] { return std::string(Runtime::get().kernels->name); });
  m.def("set_isa", [](const std::string& name) { Runtime::get().set_isa(name); }, nb::arg("name"));
  m.def("available_isas", &Runtime::available);
  m.def("read_bandwidth", &read_bandwidth, nb::arg("seconds") = 0.3, nb::call_guard<nb::gil_scoped_release>());
  m.def("multiply_add_peak", &multiply_add_peak, nb::arg("seconds") = 0.3, nb::call_guard<nb::gil_scoped_release>());
  m.def("count_time", [](bool on) {
    KernelTime::counting = on;
    KernelTime::ns = 0, KernelTime::calls = 0;
  }, nb::arg("on"));
  m.def("counted_time", [] { return std::make_pair(KernelTime::ns.load(), KernelTime::calls.load()); });
}
