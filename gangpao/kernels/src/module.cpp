// Python's view of the kernels. One call is one kernel; the interpreter lock is released inside.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "pack.h"
#include "runtime.h"

namespace nb = nanobind;
using namespace gangpao;

namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Target = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
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

std::vector<float> padded(const Floats& v, int n) {
  std::vector<float> r((size_t(n) + 15) / 16 * 16, 0.0f);
  if (v.size() != size_t(n)) throw std::invalid_argument("a vector has the wrong length");
  std::memcpy(r.data(), v.data(), size_t(n) * sizeof(float));
  return r;
}

std::shared_ptr<AttentionSpec> make_spec(int heads, int kv_heads, int head_dim, int rope_dim, float scale, float eps,
                                         std::optional<Floats> q_norm, std::optional<Floats> k_norm) {
  if (heads <= 0 || kv_heads <= 0 || heads % kv_heads || head_dim <= 0 || head_dim % 16 || rope_dim < 0 || rope_dim > head_dim ||
      rope_dim % 2)
    throw std::invalid_argument("AttentionSpec: impossible head counts or sizes (head_dim must be a multiple of 16)");
  auto s = std::make_shared<AttentionSpec>();
  if (q_norm) s->q_norm = padded(*q_norm, head_dim);
  if (k_norm) s->k_norm = padded(*k_norm, head_dim);
  s->shape = {heads, kv_heads, head_dim, rope_dim, q_norm ? s->q_norm.data() : nullptr,
              k_norm ? s->k_norm.data() : nullptr, eps, scale};
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

}  // namespace

NB_MODULE(_native, m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Array>(m, "Array")
      .def(nb::init<int, int>(), nb::arg("rows"), nb::arg("cols"))
      .def_ro("rows", &Array::rows)
      .def_ro("cols", &Array::cols)
      .def("numpy", [](Array& a) { return view(a.data, a.rows, a.cols, a.stride, a.pages); });
  nb::class_<Arena>(m, "Arena").def(nb::init<>()).def_prop_ro("nbytes", &Arena::total);
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
      .def_ro("nbytes", &Linear::nbytes);
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
      .def_prop_ro("nbytes", [](const Activation& a) { return a.pages->size(); })
      .def("floats", [](Activation& a) {
        if (!a.floats) throw std::invalid_argument("this activation keeps no floats");
        return view(const_cast<float*>(a.acts.f), a.n, a.cols, a.acts.f_stride, a.pages);
      })
      .def("dequantized", &dequantized, nb::arg("group"));
  nb::class_<Cache>(m, "Cache")
      .def(nb::init<int, int, int, int, bool>(), nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("num_pages"),
           nb::arg("int8"))
      .def_ro("num_pages", &Cache::num_pages)
      .def_prop_ro("nbytes", [](const Cache& c) { return c.pages->size(); })
      .def("copy_page", &Cache::copy_page, nb::arg("source"), nb::arg("target"), Release())
      .def_static("page_bytes", &Cache::page_bytes, nb::arg("layers"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("int8"));
  nb::class_<Rows>(m, "Rows")
      .def(nb::init<>())
      .def("clear", &Rows::clear)
      .def("add", &Rows::add, nb::arg("pages"), nb::arg("start"), nb::arg("n"))
      .def("__len__", &Rows::size);
  m.attr("PAGE") = kPage;
  nb::class_<AttentionSpec>(m, "AttentionSpec");
  m.def("attention_spec", &make_spec, nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("rope_dim"),
        nb::arg("scale"), nb::arg("eps"), nb::arg("q_norm") = nb::none(), nb::arg("k_norm") = nb::none());
  m.def("pack",
        [](const Bytes& raw, const std::string& type, int rows, int cols, std::optional<Order> order, Arena& arena) {
          if (order && order->size() != size_t(rows)) throw std::invalid_argument("pack: row order has the wrong length");
          const int32_t* o = order ? order->data() : nullptr;
          nb::gil_scoped_release release;
          return pack(raw.data(), raw.size(), type, rows, cols, o, arena);
        },
        nb::arg("raw"), nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("order").none(), nb::arg("arena"));
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
  m.def("packed_bytes", &packed_bytes, nb::arg("type"), nb::arg("rows"), nb::arg("cols"));
  m.def("weight_types", [] {
    std::vector<std::tuple<std::string, int, int, int, std::string, int>> out;
    for (const SourceType& t : all_sources())
      out.emplace_back(t.name, t.block, t.bytes, t.format.bits, style_name(t.format.style), t.format.zero);
    return out;
  });
  m.def("linear", &linear, nb::arg("w"), nb::arg("x"), nb::arg("out"), nb::arg("add") = false, nb::arg("scale") = 1.0f,
        nb::arg("table") = nb::none(), nb::arg("runs") = nb::none(), Release());
  m.def("rmsnorm", &rmsnorm, nb::arg("x"), nb::arg("n"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"), Release());
  m.def("quantize", &quantize, nb::arg("x"), nb::arg("n"), nb::arg("out"), Release());
  m.def("swiglu", &swiglu, nb::arg("gate_up"), nb::arg("n"), nb::arg("out"), Release());
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
  m.def("set_num_threads", [](int n) { Runtime::get().set_threads(n); }, nb::arg("n"));
  m.def("num_threads", [] { return Runtime::get().pool->threads(); });
  m.def("isa_name", [] { return std::string(Runtime::get().kernels->name); });
  m.def("set_isa", [](const std::string& name) { Runtime::get().set_isa(name); }, nb::arg("name"));
  m.def("available_isas", &Runtime::available);
  m.def("read_bandwidth", &read_bandwidth, nb::arg("seconds") = 0.3, Release());
}
