// What training takes of the kernels, as functions of the Python module.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

namespace gangpao {

void bind_training(nanobind::module_& m);

}  // namespace gangpao
