#include "bound.h"

#include <stdexcept>
#include <string>

#include "experts.h"
#include "linear.h"
#include "tensors.h"

namespace nb = nanobind;

namespace tunebook {
namespace {

// x as it must be for a weight of `inner` columns, or a copy of it that is; `keep` holds the copy.
TensorView panel_of(nb::handle x, int64_t inner, nb::object& keep) {
  TensorView view;
  if (!read_tensor(x, view) || !view.is_panel()) {
    throw std::invalid_argument("x must be a bfloat16 or float32 tensor on the CPU");
  }
  if (view.ndim < 1 || view.shape[view.ndim - 1] != inner) {
    const int64_t columns = view.ndim ? view.shape[view.ndim - 1] : 0;
    throw std::invalid_argument("x has " + std::to_string(columns) + " columns, the weight " + std::to_string(inner));
  }
  if (!view.contiguous) {
    keep = x.attr("contiguous")();
    read_tensor(keep, view);
  }
  return view;
}

int64_t leading(const TensorView& view) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < view.ndim; ++i) rows *= view.shape[i];
  return rows;
}

struct BoundLinear {
  nb::object owners;  // of the weights' and the bias's memory
  const Weights* weights;
  const void* bias;
  Dtype bias_dtype;
  Tactic tactic;

  nb::object operator()(nb::handle x) const {
    nb::object keep;
    const TensorView view = panel_of(x, weights->inner(), keep);
    constexpr int kMost = 16;
    if (view.ndim > kMost) throw std::invalid_argument("x has more than 16 dimensions");
    int64_t shape[kMost];
    for (int i = 0; i + 1 < view.ndim; ++i) shape[i] = view.shape[i];
    shape[view.ndim - 1] = weights->rows();
    NewTensor out(shape, view.ndim, view.dtype());
    {
      const nb::gil_scoped_release release;
      linear(*weights, {view.data, leading(view), bias, out.data(), view.dtype(), bias_dtype}, tactic);
    }
    return out.release();
  }
};

struct BoundExperts {
  nb::object owners;
  const Weights *gate_up, *down;
  Activation activation;
  Tactic tactic;

  nb::object operator()(nb::handle x, nb::handle index, nb::handle scores) const {
    nb::object keep_x, keep_index, keep_scores;
    const TensorView panel = panel_of(x, gate_up->inner(), keep_x);
    TensorView choice, score;
    if (!read_tensor(index, choice) || choice.kind != TensorView::Kind::int64) {
      throw std::invalid_argument("index must be int64, on the CPU");
    }
    if (!read_tensor(scores, score)) throw std::invalid_argument("scores must be a tensor on the CPU");
    if (!score.is_panel()) {
      keep_scores = scores.attr("float")();
      read_tensor(keep_scores, score);
    }
    if (!choice.contiguous) {
      keep_index = index.attr("contiguous")();
      read_tensor(keep_index, choice);
    }
    if (!score.contiguous) {
      keep_scores = (keep_scores ? nb::handle(keep_scores) : scores).attr("contiguous")();
      read_tensor(keep_scores, score);
    }
    if (panel.ndim != 2 || choice.ndim != 2 || score.ndim != 2 || choice.shape[0] != panel.shape[0] ||
        score.shape[0] != choice.shape[0] || score.shape[1] != choice.shape[1]) {
      throw std::invalid_argument("x must be [M, H], index and scores [M, K]");
    }
    const ExpertsCall call{panel.data,        panel.shape[0], static_cast<const int64_t*>(choice.data),
                           choice.shape[1],   score.data,     score.dtype(),
                           activation,        nullptr,        panel.dtype()};
    const int64_t shape[2] = {panel.shape[0], down->rows()};
    NewTensor out(shape, 2, panel.dtype());
    {
      const nb::gil_scoped_release release;
      ExpertsCall to = call;
      to.out = out.data();
      experts(*gate_up, *down, to, tactic);
    }
    return out.release();
  }
};

}  // namespace

void add_bound_calls(nb::module_& m) {
  m.def("use_exchange", &use_exchange, nb::arg("type"), nb::arg("capsule"));
  m.def("bind_linear", [](const Weights& weights, uintptr_t bias, Dtype bias_dtype, nb::object owners,
                          const Tactic& tactic) {
    check_tactic(weights, tactic);
    const auto* address = reinterpret_cast<const void*>(bias);
    return nb::cpp_function(BoundLinear{std::move(owners), &weights, address, bias_dtype, tactic}, nb::arg("x"));
  }, nb::arg("weights"), nb::arg("bias"), nb::arg("bias_dtype"), nb::arg("owners"), nb::arg("tactic"));
  m.def("bind_experts", [](const Weights& gate_up, const Weights& down, nb::object owners, Activation activation,
                           const Tactic& tactic) {
    check_experts(gate_up, down, tactic);
    return nb::cpp_function(BoundExperts{std::move(owners), &gate_up, &down, activation, tactic}, nb::arg("x"),
                            nb::arg("index"), nb::arg("scores"));
  }, nb::arg("gate_up"), nb::arg("down"), nb::arg("owners"), nb::arg("activation"), nb::arg("tactic"));
}

}  // namespace tunebook
