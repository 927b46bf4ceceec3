// Attention's part of the Python module: functions of tensors where PyTorch has DLPack's exchange interface, and the
// same of addresses, for which the Python side checks what they must hold.
#include "module_attention.h"

#include <stdexcept>
#include <string>

#include "attention.h"
#include "bound.h"
#include "cpu.h"
#include "linear.h"
#include "tensors.h"

namespace nb = nanobind;
using namespace tunebook;

namespace {

template <typename T>
const T* at(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

// What stays the same from call to call of one layer: how its projections become heads.
struct Heads {
  Projection projection[3];
  int dim;
  bool whole;
  float clip;

  int64_t columns() const {
    return static_cast<int64_t>(projection[0].heads + projection[1].heads + projection[2].heads) * dim;
  }
};

Heads make_heads(int query_heads, int kv_heads, int dim, uintptr_t query_norm, float query_eps, uintptr_t key_norm,
                 float key_eps, bool whole, float clip) {
  if (query_heads < 1 || kv_heads < 1 || dim < 2 || dim % 2 || !(clip >= 0)) {
    throw std::invalid_argument("heads: at least one of each, an even dimension, and a clip of at least 0");
  }
  Heads h;
  h.projection[0] = {query_heads, at<float>(query_norm), query_eps, true};
  h.projection[1] = {kv_heads, at<float>(key_norm), key_eps, true};
  h.projection[2] = {kv_heads, nullptr, 0.0f, false};
  h.dim = dim;
  h.whole = whole;
  h.clip = clip;
  return h;
}

void check_weights(const Weights& weights, const Heads& layer, const Tactic& tactic) {
  check_tactic(weights, tactic);
  if (weights.count() != 1 || weights.gated() || weights.rows() != layer.columns()) {
    throw std::invalid_argument("the weights are not those of these heads");
  }
}

struct Bias {
  const void* data;
  Dtype dtype;
};

// `call` has everything but what `layer` holds.
void project(const Weights& weights, const Heads& layer, const void* x, Bias bias, void* packed, HeadsCall call,
             const Tactic& tactic) {
  LinearCall product = {};
  product.x = x;
  product.rows = call.batch * call.tokens;
  product.bias = bias.data;
  product.bias_dtype = bias.dtype;
  product.out = packed;
  product.dtype = call.dtype;
  linear(weights, product, tactic);
  call.packed = packed;
  for (int i = 0; i < 3; ++i) call.projection[i] = layer.projection[i];
  call.dim = layer.dim;
  call.whole = layer.whole;
  call.clip = layer.clip;
  heads(call, *tactic.kernels, tactic.threads, tactic.backend);
}

void run_qkv(const Weights& weights, const Heads& layer, uintptr_t x, int64_t batch, int64_t tokens, uintptr_t bias,
             Dtype bias_dtype, uintptr_t packed, Dtype dtype, uintptr_t cos, uintptr_t sin, bool positions_differ,
             Dtype angle_dtype, uintptr_t q, uintptr_t k, uintptr_t v, const Tactic& tactic) {
  check_weights(weights, layer, tactic);
  const nb::gil_scoped_release release;
  HeadsCall call = {};
  call.batch = batch;
  call.tokens = tokens;
  call.cos = at<void>(cos);
  call.sin = at<void>(sin);
  call.positions_differ = positions_differ;
  call.angle_dtype = angle_dtype;
  call.out[0] = reinterpret_cast<void*>(q);
  call.out[1] = reinterpret_cast<void*>(k);
  call.out[2] = reinterpret_cast<void*>(v);
  call.dtype = dtype;
  project(weights, layer, at<void>(x), {at<void>(bias), bias_dtype}, reinterpret_cast<void*>(packed), call, tactic);
}

// `what` as a contiguous bf16 or fp32 tensor on the CPU; `keep` holds the copy where one is made.
TensorView panel(nb::handle what, const char* name, nb::object& keep) {
  TensorView view;
  if (!read_tensor(what, view) || !view.is_panel()) {
    throw std::invalid_argument(std::string(name) + " must be a bfloat16 or float32 tensor on the CPU");
  }
  if (!view.contiguous) {
    keep = what.attr("contiguous")();
    read_tensor(keep, view);
  }
  return view;
}

struct BoundQkv {
  nb::object owners;  // of the weights', the norms' and the bias's memory
  const Weights* weights;
  Heads layer;
  Bias bias;
  Tactic tactic;

  nb::object operator()(nb::handle x, nb::handle cos, nb::handle sin) const {
    nb::object keep_x, keep_cos, keep_sin;
    const TensorView hidden = panel(x, "x", keep_x);
    const TensorView angle[2] = {panel(cos, "cos", keep_cos), panel(sin, "sin", keep_sin)};
    const int64_t inner = weights->inner();
    bool fits = hidden.ndim == 3 && hidden.shape[2] == inner && angle[0].kind == angle[1].kind;
    for (const TensorView& a : angle) {
      fits = fits && a.ndim == 3 && (a.shape[0] == 1 || a.shape[0] == hidden.shape[0]) &&
             a.shape[1] == hidden.shape[1] && a.shape[2] == layer.dim && a.shape[0] == angle[0].shape[0];
    }
    if (!fits) {
      throw std::invalid_argument("x must be [B, T, " + std::to_string(inner) + "], cos and sin [1 or B, T, " +
                                  std::to_string(layer.dim) + "]");
    }
    HeadsCall call = {};
    call.batch = hidden.shape[0];
    call.tokens = hidden.shape[1];
    call.cos = angle[0].data;
    call.sin = angle[1].data;
    call.positions_differ = angle[0].shape[0] != 1;
    call.angle_dtype = angle[0].dtype();
    call.dtype = hidden.dtype();
    const int64_t whole[2] = {call.batch * call.tokens, layer.columns()};
    const int64_t of_q[4] = {call.batch, layer.projection[0].heads, call.tokens, layer.dim};
    const int64_t of_k[4] = {call.batch, layer.projection[1].heads, call.tokens, layer.dim};
    NewTensor packed(whole, 2, call.dtype), q(of_q, 4, call.dtype), k(of_k, 4, call.dtype), v(of_k, 4, call.dtype);
    call.out[0] = q.data();
    call.out[1] = k.data();
    call.out[2] = v.data();
    {
      const nb::gil_scoped_release release;
      project(*weights, layer, hidden.data, bias, packed.data(), call, tactic);
    }
    return nb::make_tuple(q.release(), k.release(), v.release());
  }
};

void run_attend(uintptr_t q, uintptr_t k, uintptr_t v, int64_t batch, int64_t query_heads, int64_t kv_heads,
                int64_t dim, int64_t capacity, int64_t keys, float scale, uintptr_t mask, Mask mask_kind,
                bool masks_differ, uintptr_t out, Dtype dtype, const Tactic& tactic) {
  if (kv_heads < 1 || query_heads % kv_heads || keys < 0 || keys > capacity) {
    throw std::invalid_argument("query heads must be a multiple of key heads, and the keys within the capacity");
  }
  const nb::gil_scoped_release release;
  attend({at<void>(q), at<void>(k), at<void>(v), batch, query_heads, kv_heads, dim, capacity, keys, scale,
          at<void>(mask), masks_differ, mask_kind, reinterpret_cast<void*>(out), dtype},
         *tactic.kernels, tactic.threads, tactic.backend);
}

struct BoundAttend {
  float scale;
  Tactic tactic;

  nb::object operator()(nb::handle q, nb::handle k, nb::handle v, nb::handle mask, int64_t keys) const {
    nb::object keep_q, keep_k, keep_v, keep_mask;
    const TensorView query = panel(q, "q", keep_q), key = panel(k, "k", keep_k), value = panel(v, "v", keep_v);
    bool fits = query.ndim == 4 && key.ndim == 4 && value.ndim == 4 && query.kind == key.kind &&
                key.kind == value.kind && query.shape[2] == 1 && query.shape[0] == key.shape[0] && query.shape[3] == key.shape[3] &&
                key.shape[1] > 0 && query.shape[1] % key.shape[1] == 0 && keys >= 0 && keys <= key.shape[2];
    for (int i = 0; fits && i < 4; ++i) fits = key.shape[i] == value.shape[i];
    if (!fits) {
      throw std::invalid_argument("q must be [B, Hq, 1, D], k and v [B, Hk, C, D] of its dtype, and the keys at most C");
    }
    AttendCall call = {};
    call.q = query.data;
    call.k = key.data;
    call.v = value.data;
    call.batch = query.shape[0];
    call.heads = query.shape[1];
    call.kv_heads = key.shape[1];
    call.dim = query.shape[3];
    call.capacity = key.shape[2];
    call.keys = keys;
    call.scale = scale;
    call.mask_kind = Mask::none;
    call.dtype = query.dtype();
    if (!mask.is_none()) read_mask(mask, keep_mask, call);
    const int64_t shape[4] = {call.batch, 1, call.heads, call.dim};
    NewTensor out(shape, 4, call.dtype);
    call.out = out.data();
    {
      const nb::gil_scoped_release release;
      attend(call, *tactic.kernels, tactic.threads, tactic.backend);
    }
    return out.release();
  }

  static void read_mask(nb::handle mask, nb::object& keep, AttendCall& call) {
    TensorView view;
    if (read_tensor(mask, view) && !view.contiguous) {
      keep = mask.attr("contiguous")();
      read_tensor(keep, view);
    }
    if (view.ndim != 4 || (view.shape[0] != 1 && view.shape[0] != call.batch) || view.shape[1] != 1 ||
        view.shape[2] != 1 || view.shape[3] != call.keys) {
      throw std::invalid_argument("the mask must be [1 or " + std::to_string(call.batch) + ", 1, 1, " +
                                  std::to_string(call.keys) + "]");
    }
    if (!view.is_panel() && view.kind != TensorView::Kind::boolean) {
      throw std::invalid_argument("the mask must be boolean, bfloat16 or float32");
    }
    call.mask = view.data;
    call.masks_differ = view.shape[0] != 1;
    call.mask_kind = view.kind == TensorView::Kind::boolean ? Mask::allowed
                     : view.kind == TensorView::Kind::bf16  ? Mask::bf16
                                                            : Mask::f32;
  }
};

void append_tensors(nb::handle k, nb::handle v, nb::handle keys, nb::handle values, int64_t where) {
  const nb::handle given[4] = {k, v, keys, values};
  nb::object keep[2];
  TensorView view[4];
  bool fits = true;
  for (int i = 0; fits && i < 4; ++i) {
    fits = read_tensor(given[i], view[i]) && view[i].is_panel() && view[i].ndim == 4 && view[i].kind == view[0].kind;
    if (fits && i < 2 && !view[i].contiguous) {
      keep[i] = given[i].attr("contiguous")();
      read_tensor(keep[i], view[i]);
    }
    fits = fits && view[i].contiguous;
    for (int axis = 0; fits && axis < 4; ++axis) {
      fits = view[i].shape[axis] == view[axis == 2 ? i / 2 * 2 : 0].shape[axis];
    }
  }
  const int64_t* shape = view[0].shape;
  if (!fits || where < 0 || where + shape[2] > view[2].shape[2]) {
    throw std::invalid_argument("k and v [B, H, T, D] do not fit into keys and values [B, H, C, D] at " +
                                std::to_string(where));
  }
  const int64_t row_bytes = shape[3] * element_of(view[0].dtype());
  for (int i = 0; i < 2; ++i) {
    append({view[i].data, view[2 + i].data, shape[0] * shape[1], shape[2], view[2].shape[2], where, row_bytes});
  }
}

}  // namespace

void tunebook::bind_attention(nb::module_& m) {
  nb::enum_<Mask>(m, "Mask")
      .value("none", Mask::none)
      .value("allowed", Mask::allowed)
      .value("bfloat16", Mask::bf16)
      .value("float32", Mask::f32);
  nb::class_<Heads>(m, "Heads").def_prop_ro("dim", [](const Heads& h) { return h.dim; });
  m.def("heads", make_heads, nb::kw_only(), nb::arg("query_heads"), nb::arg("kv_heads"), nb::arg("dim"),
        nb::arg("query_norm") = 0, nb::arg("query_eps") = 0.0f, nb::arg("key_norm") = 0, nb::arg("key_eps") = 0.0f,
        nb::arg("whole") = false, nb::arg("clip") = 0.0f);
  m.def("qkv", run_qkv, nb::arg("weights"), nb::arg("heads"), nb::arg("x"), nb::arg("batch"), nb::arg("tokens"),
        nb::arg("bias"), nb::arg("bias_dtype"), nb::arg("packed"), nb::arg("dtype"), nb::arg("cos"), nb::arg("sin"),
        nb::arg("positions_differ"), nb::arg("angle_dtype"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
        nb::arg("tactic"));
  m.def("bind_qkv", [](const Weights& weights, const Heads& layer, uintptr_t bias, Dtype bias_dtype, nb::object owners,
                       const Tactic& tactic) {
    check_weights(weights, layer, tactic);
    return nb::cpp_function(BoundQkv{std::move(owners), &weights, layer, {at<void>(bias), bias_dtype}, tactic},
                            nb::arg("x"), nb::arg("cos"), nb::arg("sin"));
  }, nb::arg("weights"), nb::arg("heads"), nb::arg("bias"), nb::arg("bias_dtype"), nb::arg("owners"),
        nb::arg("tactic"));
  m.def("attend", run_attend, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("batch"), nb::arg("query_heads"),
        nb::arg("kv_heads"), nb::arg("dim"), nb::arg("capacity"), nb::arg("keys"), nb::arg("scale"), nb::arg("mask"),
        nb::arg("mask_kind"), nb::arg("masks_differ"), nb::arg("out"), nb::arg("dtype"), nb::arg("tactic"));
  m.def("bind_attend", [](float scale, const Tactic& tactic) {
    return nb::cpp_function(BoundAttend{scale, tactic}, nb::arg("q"), nb::arg("k"), nb::arg("v"),
                            nb::arg("mask").none(), nb::arg("keys"));
  }, nb::arg("scale"), nb::arg("tactic"));
  m.def("append_tensors", append_tensors, nb::arg("k"), nb::arg("v"), nb::arg("keys"), nb::arg("values"),
        nb::arg("at"));
}
