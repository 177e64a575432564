// Python's view of what lies between the products of a training step (between.h): whole arrays of bfloat16, in the thread that calls, with
// the interpreter lock released, since lanes are threads of their own.
#include "training.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "runtime.h"

namespace nb = nanobind;

namespace gangpao {

namespace {

using In = nb::ndarray<const uint16_t, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<uint16_t, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

constexpr int kPiece = 4096;  // numbers of a call

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

const TrainingKernels& now() { return Runtime::get().kernels->training; }

// job(begin, n) for pieces of whole groups of 16, and rest(begin, n) for fewer than 16 at the end.
template <typename JOB, typename REST>
void pieces(size_t size, JOB job, REST rest) {
  size_t whole = size / 16 * 16;
  for (size_t i = 0; i < whole; i += kPiece) job(i, int(std::min<size_t>(kPiece, whole - i)));
  if (whole < size) rest(whole, size - whole);
}

void swiglu_there(const In& gate, const In& up, const Out& out) {
  require(gate.size() == up.size() && gate.size() == out.size(), "swiglu_bf16: arrays of different sizes");
  nb::gil_scoped_release release;
  const TrainingKernels& k = now();
  const uint16_t *g = gate.data(), *u = up.data();
  uint16_t* y = out.data();
  pieces(gate.size(), [&](size_t i, int n) { k.swiglu(g + i, u + i, n, y + i); }, [&](size_t i, size_t n) {
    uint16_t in[2][16] = {}, some[16];
    std::memcpy(in[0], g + i, 2 * n), std::memcpy(in[1], u + i, 2 * n);
    k.swiglu(in[0], in[1], 16, some);
    std::memcpy(y + i, some, 2 * n);
  });
}

void swiglu_back(const In& gate, const In& up, const In& d, const Out& d_gate, const Out& d_up) {
  size_t size = gate.size();
  require(up.size() == size && d.size() == size && d_gate.size() == size && d_up.size() == size,
          "swiglu_back_bf16: arrays of different sizes");
  nb::gil_scoped_release release;
  const TrainingKernels& k = now();
  const uint16_t *g = gate.data(), *u = up.data(), *dy = d.data();
  uint16_t *dg = d_gate.data(), *du = d_up.data();
  pieces(size, [&](size_t i, int n) { k.swiglu_back(g + i, u + i, dy + i, n, dg + i, du + i); }, [&](size_t i, size_t n) {
    uint16_t in[3][16] = {}, some[2][16];
    std::memcpy(in[0], g + i, 2 * n), std::memcpy(in[1], u + i, 2 * n), std::memcpy(in[2], dy + i, 2 * n);
    k.swiglu_back(in[0], in[1], in[2], 16, some[0], some[1]);
    std::memcpy(dg + i, some[0], 2 * n), std::memcpy(du + i, some[1], 2 * n);
  });
}

void rmsnorm_there(const In& x, const Floats& weight, float eps, const Out& out, const FloatsOut& inverse) {
  size_t width = weight.size(), rows = inverse.size();
  require(width && width % 16 == 0 && x.size() == rows * width && out.size() == x.size(), "rmsnorm_bf16: shapes do not fit");
  nb::gil_scoped_release release;
  const TrainingKernels& k = now();
  for (size_t i = 0; i < rows; ++i)
    inverse.data()[i] = k.rmsnorm(x.data() + i * width, weight.data(), int(width), eps, out.data() + i * width);
}

void rmsnorm_back(const In& x, const In& d, const Floats& weight, const Floats& inverse, const Out& dx, std::optional<FloatsOut> d_weight) {
  size_t width = weight.size(), rows = inverse.size();
  require(width && width % 16 == 0 && x.size() == rows * width && d.size() == x.size() && dx.size() == x.size() &&
              (!d_weight || d_weight->size() == width),
          "rmsnorm_back_bf16: shapes do not fit");
  float* sums = d_weight ? d_weight->data() : nullptr;
  nb::gil_scoped_release release;
  const TrainingKernels& k = now();
  if (sums) std::fill_n(sums, width, 0.0f);
  for (size_t i = 0; i < rows; ++i)
    k.rmsnorm_back(x.data() + i * width, d.data() + i * width, weight.data(), inverse.data()[i], int(width), dx.data() + i * width, sums);
}

// Heads of [batch, time, groups, share, 2 half] beside those of [batch, groups, time, share, 2 half], and the angles of their time.
template <typename JOB>
void heads(const Floats& cos, const Floats& sin, size_t batch, size_t time, size_t groups, size_t share, size_t size, JOB job) {
  size_t half = cos.shape(cos.ndim() - 1), angles = cos.size() / std::max<size_t>(half, 1);
  require(half && half % 16 == 0 && cos.size() == sin.size() && (angles == time || angles == batch * time) &&
              size == batch * time * groups * share * 2 * half,
          "turn_bf16: shapes do not fit");
  nb::gil_scoped_release release;
  for (size_t b = 0; b < batch; ++b)
    for (size_t g = 0; g < groups; ++g)
      for (size_t t = 0; t < time; ++t) {
        size_t at = (angles == time ? t : b * time + t) * half;
        size_t in = ((b * time + t) * groups + g) * share, out = ((b * groups + g) * time + t) * share;
        for (size_t h = 0; h < share; ++h) job((in + h) * 2 * half, (out + h) * 2 * half, cos.data() + at, sin.data() + at, int(half));
      }
}

void turn(const In& x, const Floats& cos, const Floats& sin, float scale, const FloatsOut& out) {
  require(x.ndim() == 5 && out.size() == x.size(), "turn_bf16: x must be [B, T, K, G, H]");
  const TrainingKernels& k = now();
  heads(cos, sin, x.shape(0), x.shape(1), x.shape(2), x.shape(3), x.size(),
        [&](size_t from, size_t to, const float* c, const float* s, int half) { k.turn(x.data() + from, c, s, half, scale, out.data() + to); });
}

void turn_back(const In& d, const Floats& cos, const Floats& sin, float scale, const Out& out) {
  require(d.ndim() == 5 && out.size() == d.size(), "turn_back_bf16: d must be [B, K, T, G, H]");
  const TrainingKernels& k = now();
  heads(cos, sin, d.shape(0), d.shape(2), d.shape(1), d.shape(3), d.size(), [&](size_t to, size_t from, const float* c, const float* s, int half) {
    k.turn_back(d.data() + from, c, s, half, scale, out.data() + to);
  });
}

}  // namespace

void bind_training(nb::module_& m) {
  m.def("swiglu_bf16", &swiglu_there, nb::arg("gate"), nb::arg("up"), nb::arg("out").noconvert());
  m.def("swiglu_back_bf16", &swiglu_back, nb::arg("gate"), nb::arg("up"), nb::arg("d"), nb::arg("d_gate").noconvert(), nb::arg("d_up").noconvert());
  m.def("rmsnorm_bf16", &rmsnorm_there, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out").noconvert(), nb::arg("inverse").noconvert());
  m.def("rmsnorm_back_bf16", &rmsnorm_back, nb::arg("x"), nb::arg("d"), nb::arg("weight"), nb::arg("inverse").noconvert(), nb::arg("dx").noconvert(),
        nb::arg("d_weight").none().noconvert());
  m.def("turn_bf16", &turn, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("scale"), nb::arg("out").noconvert());
  m.def("turn_back_bf16", &turn_back, nb::arg("d"), nb::arg("cos"), nb::arg("sin"), nb::arg("scale"), nb::arg("out").noconvert());
}

}  // namespace gangpao
