// Autograd of the operators pelk_mm::* on CPUs for a training's backward pass,
// without Python's share in it, which on a map of 7 x 7 was a third. All other
// derivatives are those of autograd.py.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/string_view.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace pelk {
namespace {

using at::Tensor;
using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Gradients = std::tuple<Tensor, Tensor>;  // of the input and the weight

template <class Result, class... Tensors>
auto find(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<Result(const Tensors&..., SymIntArrayRef, c10::string_view)>();
}

const auto& convolution() {
  static const auto op = find<Tensor, Tensor, Tensor, std::optional<Tensor>>(
      "pelk_mm::peripheral_conv2d");
  return op;
}

const auto& weight_gradient() {
  static const auto op =
      find<Tensor, Tensor, Tensor>("pelk_mm::peripheral_conv2d_weight_grad");
  return op;
}

const auto& both_gradients() {
  static const auto op = find<Gradients, Tensor, Tensor, Tensor>(
      "pelk_mm::peripheral_conv2d_backward");
  return op;
}

// Python's formulas are those of all devices but the one below.
const c10::DispatchKeySet python(c10::DispatchKey::AutogradOther);

// Which kernel, and what computes it: the last arguments of every operator.
struct Options {
  std::vector<c10::SymInt> sizes;
  std::string backend;

  Options(SymIntArrayRef sizes, c10::string_view backend)
      : sizes(sizes.vec()), backend(backend) {}
  explicit Options(AutogradContext* context)
      : sizes(context->saved_data["sizes"].toSymIntVector()),
        backend(context->saved_data["backend"].toStringRef()) {}

  void save(AutogradContext* context) const {
    context->saved_data["sizes"] = SymIntArrayRef(sizes);
    context->saved_data["backend"] = backend;
  }
};

// Whether a tensor has a tangent.
bool dual(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors)
    if (tensor._fw_grad(/*level=*/0).defined()) return true;
  return false;
}

// Whether a backward pass is to come. In a plain one none is.
bool recorded(std::initializer_list<Tensor> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor& tensor : tensors)
    if (tensor.requires_grad()) return true;
  return false;
}

struct Convolution : Function<Convolution> {
  static Tensor forward(AutogradContext* context, const Tensor& input,
                        const Tensor& weight,
                        const std::optional<Tensor>& bias,
                        const Options& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, weight});
    options.save(context);
    context->saved_data["has_bias"] = bias.has_value();
    return convolution().call(input, weight, bias, options.sizes,
                              options.backend);
  }

  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    const Options options(context);
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &grad = grads[0];
    const bool to_input = context->needs_input_grad(0);
    const bool to_weight = context->needs_input_grad(1);
    Tensor grad_input, grad_weight, grad_bias;
    if (to_input && to_weight)
      std::tie(grad_input, grad_weight) = both_gradients().call(
          input, weight, grad, options.sizes, options.backend);
    else if (to_input)
      // The grid is symmetric: the adjoint has the weight flipped.
      grad_input = convolution().call(grad, weight.flip({2, 3}), std::nullopt,
                                      options.sizes, options.backend);
    else if (to_weight)
      grad_weight =
          weight_gradient().call(input, grad, options.sizes, options.backend);
    // Only tensors that there are have a number.
    if (context->saved_data["has_bias"].toBool() &&
        context->needs_input_grad(2))
      grad_bias = grad.sum({0, 2, 3});
    return {grad_input, grad_weight, grad_bias, Tensor()};
  }
};

Tensor autograd_convolve(const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias,
                         SymIntArrayRef sizes, c10::string_view backend) {
  const std::initializer_list<Tensor> tensors{input, weight,
                                              bias.value_or(input)};
  if (dual(tensors))
    return convolution().redispatch(python, input, weight, bias, sizes,
                                    backend);
  if (recorded(tensors))
    return Convolution::apply(input, weight, bias, Options(sizes, backend));
  at::AutoDispatchBelowADInplaceOrView guard;
  return convolution().call(input, weight, bias, sizes, backend);
}

Tensor autograd_weight_grad(const Tensor& input, const Tensor& grad_output,
                            SymIntArrayRef sizes, c10::string_view backend) {
  if (dual({input, grad_output}) || recorded({input, grad_output}))
    return weight_gradient().redispatch(python, input, grad_output, sizes,
                                        backend);
  at::AutoDispatchBelowADInplaceOrView guard;
  return weight_gradient().call(input, grad_output, sizes, backend);
}

Gradients autograd_backward(const Tensor& input, const Tensor& weight,
                            const Tensor& grad_output, SymIntArrayRef sizes,
                            c10::string_view backend) {
  if (dual({input, weight, grad_output}) ||
      recorded({input, weight, grad_output}))
    return both_gradients().redispatch(python, input, weight, grad_output,
                                       sizes, backend);
  at::AutoDispatchBelowADInplaceOrView guard;
  return both_gradients().call(input, weight, grad_output, sizes, backend);
}

}  // namespace

TORCH_LIBRARY_IMPL(pelk_mm, AutogradCPU, m) {
  m.impl("peripheral_conv2d", TORCH_FN(autograd_convolve));
  m.impl("peripheral_conv2d_weight_grad", TORCH_FN(autograd_weight_grad));
  m.impl("peripheral_conv2d_backward", TORCH_FN(autograd_backward));
}

}  // namespace pelk
