// What module_rows.cpp adds to the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace tunebook {

void bind_rows(nanobind::module_& m);

}  // namespace tunebook
