// Autograd of the operators pelk_mm::* on CPUs: the formulas that
// peripheral_conv.py registers for every device, without Python's share in a
// backward pass, which on a map of 7 x 7 was a third of it.
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

Tensor convolve(const Tensor& input, const Tensor& weight,
                const std::optional<Tensor>& bias, const Options& options) {
  static const auto op = find<Tensor, Tensor, Tensor, std::optional<Tensor>>(
      "pelk_mm::peripheral_conv2d");
  return op.call(input, weight, bias, options.sizes, options.backend);
}

// The grid is symmetric: the adjoint is convolution with the weight flipped.
Tensor convolve_back(const Tensor& grad_output, const Tensor& weight,
                     const Options& options) {
  return convolve(grad_output, weight.flip({2, 3}), std::nullopt, options);
}

Tensor weight_grad(const Tensor& input, const Tensor& grad_output,
                   const Options& options) {
  static const auto op =
      find<Tensor, Tensor, Tensor>("pelk_mm::peripheral_conv2d_weight_grad");
  return op.call(input, grad_output, options.sizes, options.backend);
}

Gradients backward(const Tensor& input, const Tensor& weight,
                   const Tensor& grad_output, const Options& options) {
  static const auto op = find<Gradients, Tensor, Tensor, Tensor>(
      "pelk_mm::peripheral_conv2d_backward");
  return op.call(input, weight, grad_output, options.sizes, options.backend);
}

// Whether any of the tensors is differentiated. In a plain backward pass none
// is, and recording would cost more than the dispatch.
bool recorded(std::initializer_list<Tensor> tensors) {
  const bool backward = at::GradMode::is_enabled();
  for (const Tensor& tensor : tensors)
    if ((backward && tensor.requires_grad()) ||
        tensor._fw_grad(/*level=*/0).defined())
      return true;
  return false;
}

// Each `apply` runs the operator below autograd, and keeps its tensors.

struct Convolution : Function<Convolution> {
  static Tensor forward(AutogradContext* context, const Tensor& input,
                        const Tensor& weight,
                        const std::optional<Tensor>& bias,
                        const Options& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, weight});
    options.save(context);
    context->saved_data["has_bias"] = bias.has_value();
    return convolve(input, weight, bias, options);
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
      std::tie(grad_input, grad_weight) =
          pelk::backward(input, weight, grad, options);
    else if (to_input)
      grad_input = convolve_back(grad, weight, options);
    else if (to_weight)
      grad_weight = weight_grad(input, grad, options);
    // Only tensors that there are have a number.
    if (context->saved_data["has_bias"].toBool() &&
        context->needs_input_grad(2))
      grad_bias = grad.sum({0, 2, 3});
    return {grad_input, grad_weight, grad_bias, Tensor()};
  }
};

// The weight's gradient is bilinear: each side is a convolution.
struct WeightGrad : Function<WeightGrad> {
  static Tensor forward(AutogradContext* context, const Tensor& input,
                        const Tensor& grad_output, const Options& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, grad_output});
    options.save(context);
    return weight_grad(input, grad_output, options);
  }

  static variable_list backward(AutogradContext* context,
                                const variable_list& cotangents) {
    const Options options(context);
    const variable_list saved = context->get_saved_variables();
    Tensor grad_input, grad_grad_output;
    if (context->needs_input_grad(0))
      grad_input = convolve_back(saved[1], cotangents[0], options);
    if (context->needs_input_grad(1))
      grad_grad_output =
          convolve(saved[0], cotangents[0], std::nullopt, options);
    return {grad_input, grad_grad_output, Tensor()};
  }
};

// Both gradients are bilinear.
struct Backward : Function<Backward> {
  static variable_list forward(AutogradContext* context, const Tensor& input,
                               const Tensor& weight, const Tensor& grad_output,
                               const Options& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({input, weight, grad_output});
    options.save(context);
    auto [grad_input, grad_weight] =
        pelk::backward(input, weight, grad_output, options);
    return {grad_input, grad_weight};
  }

  static variable_list backward(AutogradContext* context,
                                const variable_list& cotangents) {
    const Options options(context);
    const variable_list saved = context->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &grad = saved[2];
    const Tensor &to_input = cotangents[0], &to_weight = cotangents[1];
    Tensor grad_input, grad_weight, grad_grad;
    if (context->needs_input_grad(0))
      grad_input = convolve_back(grad, to_weight, options);
    if (context->needs_input_grad(1))
      grad_weight = weight_grad(to_input, grad, options);
    if (context->needs_input_grad(2))
      grad_grad = convolve(to_input, weight, std::nullopt, options)
                      .add(convolve(input, to_weight, std::nullopt, options));
    return {grad_input, grad_weight, grad_grad, Tensor()};
  }
};

Tensor autograd_convolve(const Tensor& input, const Tensor& weight,
                         const std::optional<Tensor>& bias,
                         SymIntArrayRef sizes, c10::string_view backend) {
  const Options options(sizes, backend);
  if (recorded({input, weight, bias.value_or(input)}))
    return Convolution::apply(input, weight, bias, options);
  at::AutoDispatchBelowADInplaceOrView guard;
  return convolve(input, weight, bias, options);
}

Tensor autograd_weight_grad(const Tensor& input, const Tensor& grad_output,
                            SymIntArrayRef sizes, c10::string_view backend) {
  const Options options(sizes, backend);
  if (recorded({input, grad_output}))
    return WeightGrad::apply(input, grad_output, options);
  at::AutoDispatchBelowADInplaceOrView guard;
  return weight_grad(input, grad_output, options);
}

Gradients autograd_backward(const Tensor& input, const Tensor& weight,
                            const Tensor& grad_output, SymIntArrayRef sizes,
                            c10::string_view backend) {
  const Options options(sizes, backend);
  if (recorded({input, weight, grad_output})) {
    const variable_list grads =
        Backward::apply(input, weight, grad_output, options);
    return {grads[0], grads[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return backward(input, weight, grad_output, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(pelk_mm, AutogradCPU, m) {
  m.impl("peripheral_conv2d", TORCH_FN(autograd_convolve));
  m.impl("peripheral_conv2d_weight_grad", TORCH_FN(autograd_weight_grad));
  m.impl("peripheral_conv2d_backward", TORCH_FN(autograd_backward));
}

}  // namespace pelk
