// Torch operators pelk_mm_cpp::*: checks layouts, shares the work among torch's
// threads and picks the kernels for the machine it finds itself on.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "plan.h"

namespace pelk {
namespace {

std::vector<const Kernels*> runnable_kernels() {  // the fastest first
  std::vector<const Kernels*> found;
#ifdef PELK_X86_VARIANTS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma"))
    found.push_back(&kernels_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&kernels_avx2);
#endif
  found.push_back(&kernels_baseline);
  return found;
}

std::atomic<const Kernels*>& current_kernels() {
  static std::atomic<const Kernels*> kernels{runnable_kernels().front()};
  return kernels;
}

std::atomic<bool> poison_scratch{false};

Storage storage_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Storage::float32;
    case at::kDouble:
      return Storage::float64;
    case at::kBFloat16:
      return Storage::bfloat16;
    default:
      TORCH_CHECK(false, "the cpp backend has no kernel for ",
                  tensor.scalar_type());
  }
}

at::ScalarType value_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor make_scratch(int64_t elements, at::ScalarType type) {
  at::Tensor scratch = at::empty({elements}, at::TensorOptions().dtype(type));
  if (poison_scratch)
    scratch.fill_(std::numeric_limits<double>::quiet_NaN());
  return scratch;
}

template <class Pointer>
Pointer offset(Pointer data, int64_t elements, const at::Tensor& tensor) {
  return data + elements * static_cast<int64_t>(tensor.element_size());
}

// One image's channels from `channel` on.
Map map_of(const at::Tensor& tensor, int64_t image, int64_t channel) {
  char* data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  // A dimension of one position may carry any stride: make it look like the
  // layout that it does not contradict.
  int64_t channel_stride = tensor.size(1) == 1 ? 1 : tensor.stride(1);
  return {offset(data, image * tensor.stride(0) + channel * tensor.stride(1),
                 tensor),
          channel_stride, tensor.stride(2), tensor.stride(3)};
}

// Runs work(thread's scratch, task) for every task, whichever thread is free.
template <class Work>
void run_tasks(int64_t tasks, int64_t scratch_elements, at::ScalarType type,
               const Work& work) {
  int64_t workers = std::min<int64_t>(at::get_num_threads(), tasks);
  // Whole cache lines, so that threads share none and vectors are aligned.
  scratch_elements = (scratch_elements + 15) / 16 * 16;
  at::Tensor scratch = make_scratch(workers * scratch_elements, type);
  char* data = static_cast<char*>(scratch.data_ptr());
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      void* mine = offset(data, worker * scratch_elements, scratch);
      for (int64_t task; (task = next++) < tasks;) work(mine, task);
    }
  });
}

// The compact weight, or only the cells that meet the map, channels innermost:
// [channel group][row cell][column cell][lane].
template <class T>
void pack_weight(const T* weight, const Plan& plan, int64_t cells,
                 int64_t channels, int64_t lanes, T* packed) {
  const Geometry& g = plan.geometry;
  int64_t taps = int64_t{g.num_rows} * g.num_columns;
  int64_t groups = (channels + lanes - 1) / lanes;
  at::parallel_for(
      0, groups, std::max<int64_t>(1, 16384 / (taps * lanes)),
      [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group)
          for (int64_t lane = 0; lane < lanes; ++lane) {
            int64_t channel = group * lanes + lane;
            T* to = packed + group * taps * lanes + lane;
            if (channel >= channels) {
              for (int64_t tap = 0; tap < taps; ++tap) to[tap * lanes] = 0;
              continue;
            }
            const T* from = weight + (channel * cells + plan.first_row) * cells +
                            plan.first_column;
            for (int64_t a = 0; a < g.num_rows; ++a, from += cells)
              for (int64_t b = 0; b < g.num_columns; ++b, to += lanes)
                *to = from[b];
          }
      });
}

// The reverse, summing partial results; cells that meet no map get 0.
template <class T>
void unpack_weight(const T* packed, int64_t partials, const Plan& plan,
                   int64_t cells, int64_t channels, int64_t lanes, T* weight) {
  const Geometry& g = plan.geometry;
  int64_t taps = int64_t{g.num_rows} * g.num_columns;
  int64_t groups = (channels + lanes - 1) / lanes;
  at::parallel_for(
      0, channels, std::max<int64_t>(1, 16384 / (taps * partials)),
      [&](int64_t begin, int64_t end) {
        for (int64_t channel = begin; channel < end; ++channel)
          for (int64_t partial = 0; partial < partials; ++partial) {
            const T* from = packed +
                            (partial * groups + channel / lanes) * taps * lanes +
                            channel % lanes;
            T* to = weight + (channel * cells + plan.first_row) * cells +
                    plan.first_column;
            for (int64_t a = 0; a < g.num_rows; ++a, to += cells)
              for (int64_t b = 0; b < g.num_columns; ++b, from += lanes)
                to[b] += *from;
          }
      });
}

at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast
                       : at::MemoryFormat::Contiguous;
}

at::Tensor forward(const at::Tensor& input, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias,
                   at::IntArrayRef sizes, bool channels_last) {
  TORCH_CHECK(input.dim() == 4 && weight.dim() == 4 &&
                  weight.size(0) == input.size(1),
              "expected a map (N, C, H, W) and a weight (C, 1, k', k')");
  at::Tensor output = at::empty(
      input.sizes(), input.options().memory_format(format_of(channels_last)));
  if (output.numel() == 0) return output;
  const int64_t images = input.size(0), channels = input.size(1);
  const int64_t cells = sizes.size();
  Plan plan(sizes.vec(), input.size(2), input.size(3));
  const Geometry& g = plan.geometry;
  const Kernels& kernels = *current_kernels();
  const at::ScalarType type = value_type(input);
  const int64_t element = at::elementSize(type);
  const int64_t lanes = kernels.vector_bytes / element;
  const int64_t groups = (channels + lanes - 1) / lanes;
  const int64_t taps = int64_t{g.num_rows} * g.num_columns;

  at::Tensor values = weight.to(type).contiguous();
  at::Tensor packed = make_scratch((taps + 1) * groups * lanes, type);
  AT_DISPATCH_FLOATING_TYPES(type, "pelk_mm_cpp::forward", [&] {
    pack_weight(values.const_data_ptr<scalar_t>(), plan, cells, channels, lanes,
                packed.data_ptr<scalar_t>());
  });
  char* packed_weight = static_cast<char*>(packed.data_ptr());
  char* packed_bias = packed_weight + taps * groups * lanes * element;
  if (bias.has_value()) {
    std::memset(packed_bias, 0, groups * lanes * element);
    at::Tensor bias_values = bias->to(type).contiguous();
    std::memcpy(packed_bias, bias_values.const_data_ptr(), channels * element);
  }

  const int64_t bands = plan.bands(images * groups, at::get_num_threads());
  const Storage storage = storage_of(input);
  run_tasks(images * groups * bands, plan.scratch(lanes), type,
            [&](void* scratch, int64_t task) {
              int64_t band = task % bands, map = task / bands;
              int64_t group = map % groups, image = map / groups;
              int64_t channel = group * lanes;
              ForwardTask work;
              work.geometry = &g;
              work.input = map_of(input, image, channel);
              work.output = map_of(output, image, channel);
              work.weight = packed_weight + group * taps * lanes * element;
              work.bias = bias.has_value()
                              ? packed_bias + group * lanes * element
                              : nullptr;
              work.lanes = std::min(lanes, channels - channel);
              work.begin = g.height * band / bands;
              work.end = g.height * (band + 1) / bands;
              work.scratch = scratch;
              kernels.forward(storage, work);
            });
  return output;
}

at::Tensor weight_grad(const at::Tensor& input, const at::Tensor& grad_output,
                       at::IntArrayRef sizes) {
  TORCH_CHECK(input.dim() == 4 && input.sizes() == grad_output.sizes() &&
                  input.scalar_type() == grad_output.scalar_type(),
              "expected two maps (N, C, H, W) of one shape and dtype");
  const int64_t images = input.size(0), channels = input.size(1);
  const int64_t cells = sizes.size();
  const at::ScalarType type = value_type(input);
  at::Tensor grad = at::zeros({channels, 1, cells, cells},
                              input.options().dtype(type));
  if (input.numel() == 0) return grad.to(input.scalar_type());
  Plan plan(sizes.vec(), input.size(2), input.size(3));
  const Geometry& g = plan.geometry;
  const Kernels& kernels = *current_kernels();
  const int64_t element = at::elementSize(type);
  const int64_t lanes = kernels.vector_bytes / element;
  const int64_t groups = (channels + lanes - 1) / lanes;
  const int64_t taps = int64_t{g.num_rows} * g.num_columns;

  // Every task sums into a place of its own: results do not depend on which
  // thread is the faster. Images share one while there is work for all.
  const int64_t threads = at::get_num_threads();
  const int64_t per_task =
      std::max<int64_t>(1, images * groups / (4 * threads));
  const int64_t batches = (images + per_task - 1) / per_task;
  const int64_t bands = plan.bands(batches * groups, threads);
  const int64_t tasks = batches * bands * groups;
  at::Tensor partials = at::zeros({tasks * taps * lanes},
                                  at::TensorOptions().dtype(type));
  char* partial_data = static_cast<char*>(partials.data_ptr());
  const Storage storage = storage_of(input);
  run_tasks(tasks, plan.scratch(lanes), type,
            [&](void* scratch, int64_t task) {
              int64_t group = task % groups;
              int64_t band = task / groups % bands;
              int64_t batch = task / groups / bands;
              int64_t channel = group * lanes;
              WeightGradTask work;
              work.geometry = &g;
              work.grad_weight = partial_data + task * taps * lanes * element;
              work.lanes = std::min(lanes, channels - channel);
              work.begin = g.height * band / bands;
              work.end = g.height * (band + 1) / bands;
              work.scratch = scratch;
              int64_t end = std::min(images, (batch + 1) * per_task);
              for (int64_t image = batch * per_task; image < end; ++image) {
                work.input = map_of(input, image, channel);
                work.grad_output = map_of(grad_output, image, channel);
                kernels.weight_grad(storage, work);
              }
            });
  AT_DISPATCH_FLOATING_TYPES(type, "pelk_mm_cpp::weight_grad", [&] {
    unpack_weight(partials.const_data_ptr<scalar_t>(), batches * bands, plan,
                  cells, channels, lanes, grad.data_ptr<scalar_t>());
  });
  return grad.to(input.scalar_type());
}

// For tests and benchmarks.

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : runnable_kernels())
    names.emplace_back(kernels->isa);
  return names;
}

std::string use_instruction_set(std::string name) {
  for (const Kernels* kernels : runnable_kernels())
    if (kernels->isa == name) return current_kernels().exchange(kernels)->isa;
  TORCH_CHECK(false, "this machine does not run kernels for '", name, "'");
}

bool set_poison_scratch(bool poison) { return poison_scratch.exchange(poison); }

}  // namespace

TORCH_LIBRARY(pelk_mm_cpp, m) {
  m.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, int[] sizes, "
      "bool channels_last) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("forward", c10::DispatchKey::CPU, TORCH_FN(forward));
  m.def("weight_grad(Tensor input, Tensor grad_output, int[] sizes) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.impl("weight_grad", c10::DispatchKey::CPU, TORCH_FN(weight_grad));
  m.def("instruction_sets() -> str[]", &instruction_sets);
  m.def("use_instruction_set(str name) -> str", &use_instruction_set);
  m.def("set_poison_scratch(bool poison) -> bool", &set_poison_scratch);
}

}  // namespace pelk
