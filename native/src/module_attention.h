// What module_attention.cpp adds to the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace tunebook {

void bind_attention(nanobind::module_& m);

}  // namespace tunebook
