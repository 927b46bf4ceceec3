#include "tensors.h"

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace tunebook {

// The binary interface of DLPack 1, as its specification gives it.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Managed {
  uint32_t major, minor;
  void* context;
  void (*deleter)(Managed*);
  uint64_t flags;
  DLTensor tensor;
};

namespace {

constexpr int kCpu = 1;
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6;

struct Exchange {
  uint32_t major, minor;
  void* previous;
  int (*allocate)(DLTensor*, Managed**, void*, void (*)(void*, const char*, const char*));
  int (*managed_from)(void*, Managed**);
  int (*to_python)(Managed*, void**);
  int (*read)(void*, DLTensor*);
};

const Exchange* exchange = nullptr;
PyTypeObject* tensor_type = nullptr;

}  // namespace

bool use_exchange(nb::object type, nb::handle capsule) {
  const auto* found = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!found) {
    PyErr_Clear();
    return false;
  }
  if (found->major != 1 || !found->allocate || !found->to_python || !found->read) return false;
  if (!PyType_Check(type.ptr())) return false;
  exchange = found;
  tensor_type = reinterpret_cast<PyTypeObject*>(type.release().ptr());  // for as long as the process lives
  return true;
}

bool read_tensor(nb::handle tensor, TensorView& into) {
  DLTensor t;
  if (!exchange || !PyObject_TypeCheck(tensor.ptr(), tensor_type)) return false;
  if (exchange->read(tensor.ptr(), &t) != 0) {  // a device that DLPack does not know
    PyErr_Clear();
    return false;
  }
  if (t.device_type != kCpu || t.lanes != 1) return false;
  into.data = static_cast<char*>(t.data) + t.byte_offset;
  into.ndim = t.ndim;
  into.shape = t.shape;
  into.kind = t.code == kBfloat && t.bits == 16  ? TensorView::Kind::bf16
              : t.code == kFloat && t.bits == 32 ? TensorView::Kind::f32
              : t.code == kInt && t.bits == 64   ? TensorView::Kind::int64
              : t.code == kBool && t.bits == 8   ? TensorView::Kind::boolean
                                                 : TensorView::Kind::other;
  into.contiguous = true;
  if (t.strides) {
    int64_t step = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
      into.contiguous = into.contiguous && (t.shape[i] == 1 || t.strides[i] == step);
      step *= t.shape[i];
    }
  }
  if (into.data) return true;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] == 0) return true;
  }
  return false;  // a tensor without memory, as tracers have them
}

NewTensor::NewTensor(const int64_t* shape, int ndim, TensorView::Kind kind) {
  DLTensor prototype{};
  prototype.device_type = kCpu;
  prototype.ndim = ndim;
  prototype.code = kind == TensorView::Kind::bf16 ? kBfloat : kind == TensorView::Kind::f32 ? kFloat : kInt;
  prototype.bits = kind == TensorView::Kind::bf16 ? 16 : kind == TensorView::Kind::f32 ? 32 : 64;
  prototype.lanes = 1;
  prototype.shape = const_cast<int64_t*>(shape);
  std::string reason = "a tensor could not be made";
  const auto set = [](void* into, const char*, const char* message) { *static_cast<std::string*>(into) = message; };
  if (exchange->allocate(&prototype, &managed_, &reason, set) != 0) throw std::runtime_error(reason);
}

NewTensor::~NewTensor() {
  if (managed_ && managed_->deleter) managed_->deleter(managed_);
}

void* NewTensor::data() const { return static_cast<char*>(managed_->tensor.data) + managed_->tensor.byte_offset; }

nb::object NewTensor::release() {
  void* made = nullptr;
  Managed* mine = managed_;
  managed_ = nullptr;
  if (exchange->to_python(mine, &made) != 0) throw nb::python_error();
  return nb::steal(static_cast<PyObject*>(made));
}

}  // namespace tunebook
