// A device with memory of its own and the CPU's arithmetic, which stands in for a GPU where there is none.
//
// As on a GPU, an operation on tensors of two devices fails, values reach Python by a copy that waits for the device,
// and memory comes from an allocator that counts it. Every kernel is the CPU's, on the tensors' own memory: nothing
// here says anything about speed. It takes PyTorch's PrivateUse1 slot, which is made for such backends.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/Operators.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);

std::atomic<int64_t> held{0}, peak{0}, waits{0};
thread_local bool in_kernel = false;

// Apple's GPUs have neither float64 nor these factorizations.
std::atomic<bool> single_only{false};

void check_type(at::ScalarType type) {
  TORCH_CHECK_TYPE(!single_only || type != at::kDouble, "this device has no float64");
}

// Memory.

struct Allocator final : c10::Allocator {
  static constexpr size_t HEADER = 64;  // keeps the alignment, and the size for `release`

  static void release(void* data) {
    if (data == nullptr) return;
    void* block = static_cast<char*>(data) - HEADER;
    held -= *static_cast<int64_t*>(block);
    std::free(block);
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, DEVICE};
    void* block = std::malloc(bytes + HEADER);
    TORCH_CHECK(block != nullptr, "no memory for ", bytes, " bytes");
    *static_cast<int64_t*>(block) = static_cast<int64_t>(bytes);
    held += static_cast<int64_t>(bytes);
    if (held > peak) peak = held.load();
    void* data = static_cast<char*>(block) + HEADER;
    return {data, data, &release, DEVICE};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Allocator allocator;
REGISTER_ALLOCATOR(KIND, &allocator);

// One device, one stream.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = KIND;
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(c10::DeviceIndex) const override { ++waits; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
Hooks hooks;
const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

// Kernels.

Tensor on_cpu(const Tensor& tensor) {
  if (tensor.device().type() != KIND) return tensor;
  const auto& storage = tensor.storage();
  c10::Storage same(c10::Storage::use_byte_size_t(), storage.nbytes(), c10::DataPtr(storage.mutable_data(), at::kCPU));
  auto alias = at::detail::make_tensor<c10::TensorImpl>(std::move(same), c10::DispatchKey::CPU, tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return alias;
}

Tensor on_device(const Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto moved = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(DEVICE));
  on_cpu(moved).copy_(tensor);
  return moved;
}

// Tensors of no dimension may come from the CPU, but not where a fused optimizer reads step counters; so may indices.
void check_devices(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const auto& arguments = op.schema().arguments();
  const bool fused = op.schema().name().find("_fused_") != std::string::npos;
  const std::string* other = nullptr;
  bool here = false;
  auto see = [&](const Tensor& tensor, const c10::Argument& argument) {
    if (!tensor.defined()) return;
    if (tensor.device().type() == KIND) here = true;
    else if (tensor.dim() > 0 || (fused && argument.name() == "state_steps")) other = &argument.name();
  };
  for (size_t k = 0; k < arguments.size(); k++) {
    const auto& value = stack[stack.size() - arguments.size() + k];
    if (value.isTensor()) see(value.toTensor(), arguments[k]);
    if (value.isTensorList()) for (const Tensor& tensor : value.toTensorVector()) see(tensor, arguments[k]);
  }
  TORCH_CHECK(!here || other == nullptr, op.schema().name(), " needs its argument ", *other, " on the same device");
}

void kernel(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  check_devices(op, *stack);
  const std::string& name = op.schema().name();
  const bool factorizes = name.find("_linalg_svd") != std::string::npos || name.find("_linalg_eigh") != std::string::npos;
  TORCH_CHECK_NOT_IMPLEMENTED(!single_only || !factorizes, name, " is not implemented for this device");
  const bool before = in_kernel;
  in_kernel = true;  // what is copied in here is this file's way, not a GPU's
  at::native::cpu_fallback(op, stack);
  in_kernel = before;
}

Tensor empty(IntArrayRef size, optional<at::ScalarType> type, optional<at::Layout>, optional<at::Device>,
             optional<bool>, optional<at::MemoryFormat> format) {
  check_type(at::dtype_or_default(type));
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &allocator, keys, at::dtype_or_default(type), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> type, optional<at::Layout>,
                     optional<at::Device>, optional<bool>) {
  check_type(at::dtype_or_default(type));
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys, at::dtype_or_default(type));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (to.device().type() != KIND && !in_kernel) waits++;
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

const Tensor& resize(const Tensor& tensor, IntArrayRef size, optional<at::MemoryFormat>) {
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  const size_t bytes = (tensor.numel() + tensor.storage_offset()) * tensor.dtype().itemsize();
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) {
    auto data = allocator.allocate(bytes);
    if (storage->nbytes() > 0) std::memcpy(data.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(bytes);
  }
  return tensor;
}

Tensor& set_storage(Tensor& tensor, c10::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  return at::native::set_storage_cpu_(tensor, std::move(storage), offset, size, stride);
}

Tensor& set_tensor(Tensor& tensor, const Tensor& source) {
  return set_storage(tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Scalar value_of(const Tensor& tensor) {
  waits++;
  return at::_local_scalar_dense(on_cpu(tensor));
}

Tensor convolution(const Tensor& x, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output, int64_t groups) {
  TORCH_CHECK(x.device() == weight.device(), "convolution needs its argument input on the same device");
  const auto shift = bias && bias->defined() ? optional<Tensor>(on_cpu(*bias)) : std::nullopt;
  return on_device(
      at::convolution(on_cpu(x), on_cpu(weight), shift, stride, padding, dilation, transposed, output, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output, int64_t groups, std::array<bool, 3> wanted) {
  const auto [dx, dw, db] = at::convolution_backward(
      on_cpu(gradient), on_cpu(x), on_cpu(weight), IntArrayRef({weight.size(transposed ? 1 : 0)}), stride, padding,
      dilation, transposed, output, groups, wanted);
  return {on_device(dx), on_device(dw), on_device(db)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernel>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &value_of);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("unfold", &at::native::unfold);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}

// What it counts, and what it can do without.

TORCH_LIBRARY(standin, m) {
  m.def("single_only(bool on) -> ()", [](bool on) { single_only = on; });
  m.def("waits() -> int", []() -> int64_t { return waits; });
  m.def("memory_allocated() -> int", []() -> int64_t { return held; });
  m.def("max_memory_allocated() -> int", []() -> int64_t { return peak; });
  m.def("reset_peak_memory_stats() -> ()", []() { peak = held.load(); });
}

}  // namespace
