// Python tensors by the C functions of DLPack's exchange interface (version 1, since its minor version 2): reading one
// takes no Python call, and making one no parsing of arguments.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "kernels.h"

namespace tunebook {

// Keeps the interface of `type`, whose capsule `capsule` is. False, and nothing kept, where its version is not usable.
bool use_exchange(nanobind::object type, nanobind::handle capsule);

// A tensor on the CPU as a call takes it; it must outlive this.
struct TensorView {
  enum class Kind { bf16, f32, int64, boolean, other };

  void* data = nullptr;
  int ndim = 0;
  const int64_t* shape = nullptr;
  Kind kind = Kind::other;
  bool contiguous = false;

  bool is_panel() const { return kind == Kind::bf16 || kind == Kind::f32; }
  Dtype dtype() const { return kind == Kind::bf16 ? Dtype::bf16 : Dtype::f32; }
};

// False: not a tensor of the type in use, or not on the CPU.
bool read_tensor(nanobind::handle tensor, TensorView& into);

// A new contiguous tensor, not yet a Python object, so that its memory can be written without the interpreter's lock.
class NewTensor {
 public:
  // Throws std::runtime_error where the allocator fails.
  NewTensor(const int64_t* shape, int ndim, Dtype dtype)
      : NewTensor(shape, ndim, dtype == Dtype::bf16 ? TensorView::Kind::bf16 : TensorView::Kind::f32) {}
  NewTensor(const int64_t* shape, int ndim, TensorView::Kind kind);
  ~NewTensor();
  NewTensor(const NewTensor&) = delete;
  NewTensor& operator=(const NewTensor&) = delete;
  void* data() const;
  nanobind::object release();

 private:
  struct Managed* managed_ = nullptr;
};

}  // namespace tunebook
