// The Python module: addresses and sizes in, nothing of PyTorch. What an address must hold is checked by the Python
// side.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "bound.h"
#include "cpu.h"
#include "experts.h"
#include "linear.h"
#include "module_attention.h"
#include "module_rows.h"

namespace nb = nanobind;
using namespace tunebook;

namespace {

template <typename T>
const T* at(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

const Kernels& any_kernels() {
  if (instruction_sets().empty()) {
    throw std::runtime_error("this processor has no instruction set that the kernels use");
  }
  return *kernels_of(instruction_sets().front());
}

Backend backend_of(const std::string& name) {
  if (name == "auto") return Backend::automatic;
  if (name == "openmp") return Backend::openmp;
  if (name == "pool") return Backend::pool;
  throw std::invalid_argument("backend must be auto, openmp or pool, not " + name);
}

Split split_of(const std::string& name) {
  if (name == "columns") return Split::columns;
  if (name == "experts") return Split::experts;
  if (name == "tokens") return Split::tokens;
  throw std::invalid_argument("split must be columns, experts or tokens, not " + name);
}

constexpr std::pair<const char*, Activation> kActivations[] = {
    {"silu", Activation::silu}, {"gelu", Activation::gelu},       {"gelu_tanh", Activation::gelu_tanh},
    {"relu", Activation::relu}, {"relu6", Activation::relu6},     {"sigmoid", Activation::sigmoid},
    {"tanh", Activation::tanh}, {"hardswish", Activation::hardswish}, {"mish", Activation::mish}};

Activation activation_of(const std::string& name) {
  for (const auto& [known, value] : kActivations) {
    if (name == known) return value;
  }
  throw std::invalid_argument("unknown activation " + name);
}

Dtype dtype_of(const std::string& name) {
  if (name == "bfloat16") return Dtype::bf16;
  if (name == "float32") return Dtype::f32;
  throw std::invalid_argument("dtype must be bfloat16 or float32, not " + name);
}

Tactic make_tactic(const std::string& isa, bool dot, int row_tile, int columns, const std::string& split,
                   int64_t prefetch, int threads, const std::string& backend) {
  Tactic t;
  t.kernels = kernels_of(isa);
  if (!t.kernels) throw std::invalid_argument("instruction set " + isa + " is not usable here");
  if (row_tile < 1 || columns < 0 || prefetch < kNextBlock || threads < 1) {
    throw std::invalid_argument("row_tile and threads are at least 1, columns at least 0, prefetch at least -1");
  }
  t.dot = dot;
  t.row_tile = row_tile;
  t.columns = columns;
  t.split = split_of(split);
  t.prefetch = prefetch;
  t.threads = threads;
  t.backend = backend_of(backend);
  return t;
}

Weights view(uintptr_t data, int64_t count, int64_t rows, int64_t inner, const std::string& dtype, bool gated) {
  if (count < 0 || rows < 0 || inner < 0 || (gated && rows % 2)) throw std::invalid_argument("impossible sizes");
  return Weights(at<void>(data), count, rows, inner, dtype_of(dtype), gated);
}

void check_block(int block) {
  if (block != 16 && block != 32 && block != 64) throw std::invalid_argument("block must be 16, 32 or 64");
}

// Rows at each (address, number of rows).
Rows rows_at(const std::vector<std::pair<uintptr_t, int64_t>>& parts, const Weights& shape) {
  std::vector<Rows::Part> found;
  int64_t rows = 0;
  for (const auto& [address, count] : parts) {
    if (count < 0) throw std::invalid_argument("impossible sizes");
    found.push_back({at<void>(address), count});
    rows += count;
  }
  if (rows != shape.count() * shape.rows()) throw std::invalid_argument("the parts have other rows than the weights");
  return Rows(std::move(found), shape.inner() * shape.element());
}

Weights pack(const Weights& shape, const std::vector<std::pair<uintptr_t, int64_t>>& parts, int block, int threads,
             const std::string& backend) {
  if (shape.packed()) throw std::invalid_argument("the weights are packed already");
  check_block(block);
  const Rows rows = rows_at(parts, shape);
  const nb::gil_scoped_release release;
  return Weights::pack(shape, rows, block, any_kernels(), threads, backend_of(backend));
}

void unpack(const Weights& from, const std::vector<std::pair<uintptr_t, int64_t>>& parts, int threads,
            const std::string& backend) {
  if (!from.packed()) throw std::invalid_argument("the weights are not packed");
  const Rows rows = rows_at(parts, from);
  const nb::gil_scoped_release release;
  from.unpack(rows, any_kernels(), threads, backend_of(backend));
}

Weights outline(const Weights& weights, int block) {
  check_block(block);
  return weights.outline(block);
}

void pack_in_place(Weights& weights, int block, int threads, const std::string& backend) {
  check_block(block);
  const nb::gil_scoped_release release;
  weights.pack_in_place(block, any_kernels(), threads, backend_of(backend));
}

void unpack_in_place(Weights& weights, int threads, const std::string& backend) {
  const nb::gil_scoped_release release;
  weights.unpack_in_place(any_kernels(), threads, backend_of(backend));
}

}  // namespace

namespace tunebook {

void check_tactic(const Weights& weights, const Tactic& tactic) {
  if (tactic.dot && weights.packed()) throw std::invalid_argument("dot products need row-major weights");
}

void check_experts(const Weights& gate_up, const Weights& down, const Tactic& tactic) {
  check_tactic(gate_up, tactic);
  check_tactic(down, tactic);
  if (!gate_up.gated() || down.gated() || gate_up.count() != down.count() || gate_up.rows() != 2 * down.inner() ||
      gate_up.inner() != down.rows() || gate_up.dtype() != down.dtype()) {
    throw std::invalid_argument("gate_up [E, 2I, H] and down [E, H, I] do not fit each other");
  }
}

}  // namespace tunebook

namespace {

void run_linear(const Weights& weights, uintptr_t x, int64_t rows, uintptr_t bias, Dtype bias_dtype, uintptr_t out,
                Dtype dtype, const Tactic& tactic) {
  check_tactic(weights, tactic);
  const nb::gil_scoped_release release;
  linear(weights, {at<void>(x), rows, at<void>(bias), reinterpret_cast<void*>(out), dtype, bias_dtype}, tactic);
}

void run_experts(const Weights& gate_up, const Weights& down, uintptr_t x, int64_t tokens, uintptr_t index,
                 int64_t choices, uintptr_t scores, Dtype scores_dtype, Activation activation, uintptr_t out,
                 Dtype dtype, const Tactic& tactic) {
  check_experts(gate_up, down, tactic);
  const nb::gil_scoped_release release;
  experts(gate_up, down,
          {at<void>(x), tokens, at<int64_t>(index), choices, at<void>(scores), scores_dtype, activation,
           reinterpret_cast<void*>(out), dtype},
          tactic);
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Bytes a second of reading `bytes` of fresh memory once, `ahead` bytes prefetched.
double read_bandwidth(const Weights& weights, int64_t ahead, int threads, const std::string& backend) {
  if (!weights.packed()) throw std::invalid_argument("the memory to read must be that of packed weights");
  const nb::gil_scoped_release release;
  const Kernels& kernels = any_kernels();
  constexpr int64_t part = 1 << 18;
  const int64_t bytes = static_cast<int64_t>(weights.bytes()) / part * part;
  std::atomic<int64_t> next{0};
  const double start = seconds();
  parallel(threads, backend_of(backend), [&](int, int) {
    for (int64_t i; (i = next.fetch_add(part)) < bytes;) kernels.read(weights.block_at(0, 0) + i, part, ahead);
  });
  return static_cast<double>(bytes) / (seconds() - start);
}

// Floating-point operations a second of the instruction set's fastest multiplication, over about 20 ms.
double multiply_peak(const std::string& isa, int threads, const std::string& backend) {
  const Kernels* kernels = kernels_of(isa);
  if (!kernels) throw std::invalid_argument("instruction set " + isa + " is not usable here");
  const nb::gil_scoped_release release;
  std::atomic<int64_t> operations{0};
  const double start = seconds();
  parallel(threads, backend_of(backend), [&](int, int) {
    int64_t mine = 0;
    do {
      mine += kernels->peak(5000);
    } while (seconds() - start < 0.02);
    operations += mine;
  });
  return static_cast<double>(operations.load()) / (seconds() - start);
}

}  // namespace

NB_MODULE(_native, m) {
  // A process may import the module again after taking it out of sys.modules. Its types cannot be made twice: they are kept.
  static PyObject* first = nullptr;
  if (first) {
    for (const auto [name, value] : nb::borrow<nb::dict>(PyModule_GetDict(first))) {
      if (!nb::cast<std::string>(name).compare(0, 2, "__")) continue;
      m.attr(name) = value;
    }
    return;
  }
  first = nb::object(m).release().ptr();
  m.doc() = "CPU kernels of tunebook: linear layers and mixtures of experts on packed or row-major weights.";

  nb::enum_<Dtype>(m, "Dtype").value("bfloat16", Dtype::bf16).value("float32", Dtype::f32);
  nb::enum_<Activation> activations(m, "Activation");
  for (const auto& [name, value] : kActivations) activations.value(name, value);

  nb::class_<Tactic>(m, "Tactic")
      .def_prop_ro("threads", [](const Tactic& t) { return t.threads; });
  m.def("tactic", make_tactic, nb::kw_only(), nb::arg("isa"), nb::arg("dot") = false, nb::arg("row_tile") = 4,
        nb::arg("columns") = 0, nb::arg("split") = "columns", nb::arg("prefetch") = 0, nb::arg("threads") = 1,
        nb::arg("backend") = "auto");

  nb::class_<Weights>(m, "Weights")
      .def_prop_ro("count", &Weights::count)
      .def_prop_ro("rows", &Weights::rows)
      .def_prop_ro("inner", &Weights::inner)
      .def_prop_ro("gated", &Weights::gated)
      .def_prop_ro("packed", &Weights::packed)
      .def_prop_ro("block", &Weights::block)
      .def_prop_ro("bytes", &Weights::bytes)
      .def_prop_ro("dtype", &Weights::dtype)
      .def_prop_ro("in_place", &Weights::in_place)
      .def("pack", pack, nb::arg("parts"), nb::arg("block"), nb::arg("threads"), nb::arg("backend") = "auto")
      .def("unpack", unpack, nb::arg("parts"), nb::arg("threads"), nb::arg("backend") = "auto")
      .def("outline", outline, nb::arg("block"))
      .def("in_place_refusal", &Weights::in_place_refusal, nb::arg("block"))
      .def("pack_in_place", pack_in_place, nb::arg("block"), nb::arg("threads"), nb::arg("backend") = "auto")
      .def("unpack_in_place", unpack_in_place, nb::arg("threads"), nb::arg("backend") = "auto");
  m.def("view", view, nb::arg("data"), nb::arg("count"), nb::arg("rows"), nb::arg("inner"), nb::arg("dtype"),
        nb::arg("gated"));

  m.def("linear", run_linear, nb::arg("weights"), nb::arg("x"), nb::arg("rows"), nb::arg("bias"), nb::arg("bias_dtype"),
        nb::arg("out"), nb::arg("dtype"), nb::arg("tactic"));
  m.def("experts", run_experts, nb::arg("gate_up"), nb::arg("down"), nb::arg("x"), nb::arg("tokens"), nb::arg("index"),
        nb::arg("choices"), nb::arg("scores"), nb::arg("scores_dtype"), nb::arg("activation"), nb::arg("out"),
        nb::arg("dtype"), nb::arg("tactic"));

  add_bound_calls(m);

  m.def("linear_workspace", &linear_workspace, nb::arg("weights"), nb::arg("rows"), nb::arg("dtype"),
        nb::arg("tactic"));
  m.def("experts_workspace", &experts_workspace, nb::arg("gate_up"), nb::arg("down"), nb::arg("tokens"),
        nb::arg("choices"), nb::arg("dtype"), nb::arg("tactic"));
  m.def("instruction_sets", &instruction_sets);
  m.def("row_tiles", [](const std::string& isa, Dtype panel, Dtype weight, bool dot) {
    const Kernels* kernels = kernels_of(isa);
    if (!kernels) throw std::invalid_argument("instruction set " + isa + " is not usable here");
    const int product = static_cast<int>(product_of(*kernels, panel, weight));
    return dot ? kernels->dot_rows[product] : kernels->rows[product];
  }, nb::arg("isa"), nb::arg("panel"), nb::arg("weight"), nb::arg("dot"));
  m.def("processors", &usable_processors);
  m.def("backend", &chosen_backend);
  m.def("release_workspace", &Arena::release);
  m.def("read_bandwidth", read_bandwidth, nb::arg("weights"), nb::arg("ahead"), nb::arg("threads"),
        nb::arg("backend") = "auto");
  m.def("multiply_peak", multiply_peak, nb::arg("isa"), nb::arg("threads"), nb::arg("backend") = "auto");
  bind_rows(m);
  bind_attention(m);
}
