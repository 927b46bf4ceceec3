// The row operations of the Python module: addresses and sizes in. Plain integers and flags: a call takes microseconds, of
// which converting arguments must stay the smallest part.
#include "module_rows.h"

#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "rows.h"
#include "tensors.h"

namespace nb = nanobind;

namespace tunebook {
namespace {

// Shorter work than this, in elements, keeps the interpreter lock: handing it over takes longer.
constexpr int64_t kLocked = 1 << 16;
constexpr int kMostDimensions = 16;

class Unlocked {
 public:
  explicit Unlocked(int64_t elements) {
    if (elements > kLocked) release_.emplace();
  }

 private:
  std::optional<nb::gil_scoped_release> release_;
};

Dtype dtype_of(bool f32) { return f32 ? Dtype::f32 : Dtype::bf16; }

// [..., inner] of `dtype`, contiguous, or a copy that is; `keep` holds the copy.
TensorView rows_of(nb::handle x, int64_t inner, Dtype dtype, nb::object& keep) {
  TensorView view;
  if (!read_tensor(x, view) || !view.is_panel() || view.dtype() != dtype) {
    throw std::invalid_argument("a tensor is not on the CPU, or not of the weight's dtype");
  }
  if (view.ndim < 1 || view.ndim > kMostDimensions || view.shape[view.ndim - 1] != inner) {
    throw std::invalid_argument("the rows of a tensor are not as long as the weight");
  }
  if (!view.contiguous) {
    keep = x.attr("contiguous")();
    read_tensor(keep, view);
  }
  return view;
}

int64_t elements(const TensorView& view) {
  int64_t count = 1;
  for (int i = 0; i < view.ndim; ++i) count *= view.shape[i];
  return count;
}

// Functions of tensors alone. `weight` lives as long as `owner` and does not move meanwhile.
struct Bound {
  const Kernels* kernels;
  nb::object owner;
  const void* weight;
  float epsilon, multiplier;
  int64_t inner;
  Dtype dtype;
  int threads;

  NormCall call(const void* x, const void* residual, const void* by, int64_t count, void* sum, void* normed) const {
    return {x, residual, multiplier, by, epsilon, inner ? count / inner : 0, inner, sum, normed, dtype};
  }

  void run(const NormCall& what, int64_t count) const {
    const Unlocked unlocked(count);
    add_rms_norm(what, *kernels->rows_of, threads);
  }
};

struct BoundNorm : Bound {
  nb::object operator()(nb::handle x) const {
    nb::object keep;
    const TensorView view = rows_of(x, inner, dtype, keep);
    NewTensor out(view.shape, view.ndim, dtype);
    const int64_t count = elements(view);
    run(call(view.data, nullptr, weight, count, nullptr, out.data()), count);
    return out.release();
  }
};

struct BoundAddNorm : Bound {
  nb::object operator()(nb::handle x, nb::handle residual) const {
    nb::object keep, keep_residual;
    const TensorView added = rows_of(x, inner, dtype, keep), view = rows_of(residual, inner, dtype, keep_residual);
    const int64_t count = elements(view);
    if (elements(added) != count) throw std::invalid_argument("x and residual have different sizes");
    NewTensor sum(view.shape, view.ndim, dtype), out(view.shape, view.ndim, dtype);
    run(call(added.data, view.data, weight, count, sum.data(), out.data()), count);
    return nb::make_tuple(sum.release(), out.release());
  }
};

struct BoundAdd : Bound {
  nb::object operator()(nb::handle x, nb::handle residual) const {
    TensorView first;
    if (!read_tensor(residual, first) || !first.is_panel() || first.ndim < 1) {
      throw std::invalid_argument("residual must be a bfloat16 or float32 tensor [..., H] on the CPU");
    }
    nb::object keep, keep_residual;
    BoundAdd same = {*this};
    same.inner = first.shape[first.ndim - 1];
    same.dtype = first.dtype();
    const TensorView added = rows_of(x, same.inner, same.dtype, keep);
    const TensorView view = rows_of(residual, same.inner, same.dtype, keep_residual);
    const int64_t count = elements(view);
    if (elements(added) != count) throw std::invalid_argument("x and residual have different sizes");
    NewTensor sum(view.shape, view.ndim, same.dtype);
    same.run(same.call(added.data, view.data, nullptr, count, sum.data(), nullptr), count);
    return sum.release();
  }
};

RouterCall router_call(uintptr_t weight, int64_t experts, int64_t inner, int64_t choices, int scoring, bool dot,
                       bool f32, bool logits_f32, bool scores_f32) {
  if (choices < 0 || choices > experts) throw std::invalid_argument("a token has between 0 and all experts");
  if (scoring < 0 || scoring > static_cast<int>(Scoring::all_renormalised)) throw std::invalid_argument("unknown scoring");
  if (inner < 0 || (f32 && !logits_f32)) throw std::invalid_argument("impossible sizes, or logits narrower than x");
  RouterCall call = {};
  call.weight = reinterpret_cast<void*>(weight);
  call.experts = experts;
  call.inner = inner;
  call.choices = choices;
  call.scoring = static_cast<Scoring>(scoring);
  call.dot = dot;
  call.dtype = dtype_of(f32);
  call.logits_dtype = dtype_of(logits_f32);
  call.scores_dtype = dtype_of(scores_f32);
  return call;
}

void run_router(const RouterCall& call, const Kernels& kernels, int threads) {
  if (call.tokens < 0 || threads < 1) throw std::invalid_argument("impossible sizes");
  const Unlocked unlocked(call.tokens * call.experts * call.inner / 16);
  router(call, kernels, threads);
}

struct BoundRouter {
  const Kernels* kernels;
  nb::object owner;  // of the weight
  RouterCall settled;
  int threads;

  nb::object operator()(nb::handle x) const {
    nb::object keep;
    const TensorView view = rows_of(x, settled.inner, settled.dtype, keep);
    if (view.ndim != 2) throw std::invalid_argument("x must be [M, H]");
    RouterCall call = settled;
    call.x = view.data;
    call.tokens = view.shape[0];
    const int64_t all[2] = {call.tokens, call.experts}, chosen[2] = {call.tokens, call.choices};
    NewTensor logits(all, 2, call.logits_dtype), scores(chosen, 2, call.scores_dtype);
    NewTensor index(chosen, 2, TensorView::Kind::int64);
    call.logits = logits.data();
    call.scores = scores.data();
    call.index = static_cast<int64_t*>(index.data());
    run_router(call, *kernels, threads);
    return nb::make_tuple(logits.release(), scores.release(), index.release());
  }
};

struct Rows {
  const Kernels* kernels;

  nb::object bind_norm(nb::object owner, uintptr_t weight, double epsilon, int64_t inner, bool f32, int threads) const {
    return nb::cpp_function(BoundNorm{bound(std::move(owner), weight, epsilon, 1.0, inner, f32, threads)}, nb::arg("x"));
  }

  nb::object bind_add_norm(nb::object owner, uintptr_t weight, double epsilon, double multiplier, int64_t inner, bool f32,
                           int threads) const {
    return nb::cpp_function(BoundAddNorm{bound(std::move(owner), weight, epsilon, multiplier, inner, f32, threads)},
                            nb::arg("x"), nb::arg("residual"));
  }

  nb::object bind_add(double multiplier, int threads) const {
    return nb::cpp_function(BoundAdd{bound(nb::none(), 0, 0.0, multiplier, 0, true, threads)}, nb::arg("x"),
                            nb::arg("residual"));
  }

  void norm(uintptr_t x, uintptr_t weight, double epsilon, int64_t rows, int64_t inner, uintptr_t out, bool f32,
            int threads) const {
    run({reinterpret_cast<void*>(x), nullptr, 1.0f, reinterpret_cast<void*>(weight), static_cast<float>(epsilon), rows,
         inner, nullptr, reinterpret_cast<void*>(out), dtype_of(f32)},
        threads);
  }

  void add_norm(uintptr_t x, uintptr_t residual, double multiplier, uintptr_t weight, double epsilon, int64_t rows,
                int64_t inner, uintptr_t sum, uintptr_t normed, bool f32, int threads) const {
    run({reinterpret_cast<void*>(x), reinterpret_cast<void*>(residual), static_cast<float>(multiplier),
         reinterpret_cast<void*>(weight), static_cast<float>(epsilon), rows, inner, reinterpret_cast<void*>(sum),
         reinterpret_cast<void*>(normed), dtype_of(f32)},
        threads);
  }

  void add(uintptr_t x, uintptr_t residual, double multiplier, int64_t rows, int64_t inner, uintptr_t sum, bool f32,
           int threads) const {
    run({reinterpret_cast<void*>(x), reinterpret_cast<void*>(residual), static_cast<float>(multiplier), nullptr, 0.0f,
         rows, inner, reinterpret_cast<void*>(sum), nullptr, dtype_of(f32)},
        threads);
  }

  void route(uintptr_t x, uintptr_t weight, int64_t tokens, int64_t experts, int64_t inner, int64_t choices, int scoring,
             bool dot, bool f32, uintptr_t logits, bool logits_f32, uintptr_t scores, bool scores_f32, uintptr_t index,
             int threads) const {
    RouterCall call = router_call(weight, experts, inner, choices, scoring, dot, f32, logits_f32, scores_f32);
    call.x = reinterpret_cast<void*>(x);
    call.tokens = tokens;
    call.logits = reinterpret_cast<void*>(logits);
    call.scores = reinterpret_cast<void*>(scores);
    call.index = reinterpret_cast<int64_t*>(index);
    run_router(call, *kernels, threads);
  }

  nb::object bind_router(nb::object owner, uintptr_t weight, int64_t experts, int64_t inner, int64_t choices, int scoring,
                         bool dot, bool f32, bool logits_f32, bool scores_f32, int threads) const {
    const RouterCall call = router_call(weight, experts, inner, choices, scoring, dot, f32, logits_f32, scores_f32);
    return nb::cpp_function(BoundRouter{kernels, std::move(owner), call, threads}, nb::arg("x"));
  }

 private:
  Bound bound(nb::object owner, uintptr_t weight, double epsilon, double multiplier, int64_t inner, bool f32,
              int threads) const {
    if (inner < 0 || threads < 1) throw std::invalid_argument("impossible sizes");
    return {kernels, std::move(owner), reinterpret_cast<void*>(weight), static_cast<float>(epsilon),
            static_cast<float>(multiplier), inner, dtype_of(f32), threads};
  }

  void run(const NormCall& call, int threads) const {
    if (call.rows < 0 || call.inner < 0 || threads < 1) throw std::invalid_argument("impossible sizes");
    const Unlocked unlocked(call.rows * call.inner);
    add_rms_norm(call, *kernels->rows_of, threads);
  }
};

Rows make_rows(const std::string& isa) {
  const Kernels* kernels = kernels_of(isa);
  if (!kernels) throw std::invalid_argument("instruction set " + isa + " is not usable here");
  return {kernels};
}

}  // namespace

void bind_rows(nb::module_& m) {
  nb::class_<Rows>(m, "Rows")
      .def("bind_rms_norm", &Rows::bind_norm, nb::arg("owner"), nb::arg("weight"), nb::arg("epsilon"), nb::arg("inner"),
           nb::arg("f32"), nb::arg("threads"))
      .def("bind_add_rms_norm", &Rows::bind_add_norm, nb::arg("owner"), nb::arg("weight"), nb::arg("epsilon"),
           nb::arg("multiplier"), nb::arg("inner"), nb::arg("f32"), nb::arg("threads"))
      .def("bind_residual_add", &Rows::bind_add, nb::arg("multiplier"), nb::arg("threads"))
      .def("bind_router", &Rows::bind_router, nb::arg("owner"), nb::arg("weight"), nb::arg("experts"), nb::arg("inner"),
           nb::arg("choices"), nb::arg("scoring"), nb::arg("dot"), nb::arg("f32"), nb::arg("logits_f32"), nb::arg("scores_f32"),
           nb::arg("threads"))
      .def("rms_norm", &Rows::norm, nb::arg("x"), nb::arg("weight"), nb::arg("epsilon"), nb::arg("rows"),
           nb::arg("inner"), nb::arg("out"), nb::arg("f32"), nb::arg("threads"))
      .def("add_rms_norm", &Rows::add_norm, nb::arg("x"), nb::arg("residual"), nb::arg("multiplier"), nb::arg("weight"),
           nb::arg("epsilon"), nb::arg("rows"), nb::arg("inner"), nb::arg("sum"), nb::arg("normed"), nb::arg("f32"),
           nb::arg("threads"))
      .def("residual_add", &Rows::add, nb::arg("x"), nb::arg("residual"), nb::arg("multiplier"), nb::arg("rows"),
           nb::arg("inner"), nb::arg("sum"), nb::arg("f32"), nb::arg("threads"))
      .def("router", &Rows::route, nb::arg("x"), nb::arg("weight"), nb::arg("tokens"), nb::arg("experts"),
           nb::arg("inner"), nb::arg("choices"), nb::arg("scoring"), nb::arg("dot"), nb::arg("f32"), nb::arg("logits"),
           nb::arg("logits_f32"), nb::arg("scores"), nb::arg("scores_f32"), nb::arg("index"), nb::arg("threads"));
  m.def("rows", make_rows, nb::arg("isa"));
}

}  // namespace tunebook
