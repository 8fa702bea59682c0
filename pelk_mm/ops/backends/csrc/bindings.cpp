// Torch operators pelk_mm_cpp::*: checks layouts, shares the work among
// torch's threads and picks the kernels for the machine it finds itself on.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "plan.h"

namespace pelk {
namespace {

std::vector<const Kernels*> runnable_kernels() {  // the fastest first
  std::vector<const Kernels*> found;
#ifdef PELK_X86_VARIANTS
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&kernels_avx512);
  if (fma && __builtin_cpu_supports("avx2")) found.push_back(&kernels_avx2);
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
  if (poison_scratch) scratch.fill_(std::numeric_limits<double>::quiet_NaN());
  return scratch;
}

char* address(const at::Tensor& tensor, int64_t element = 0) {
  char* data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  return data + element * static_cast<int64_t>(tensor.element_size());
}

// One image's channels from `channel` on.
Map map_of(const at::Tensor& x, int64_t image, int64_t channel) {
  // A dimension of one position may carry any stride: make it look like the
  // layout that it does not contradict.
  int64_t channel_stride = x.size(1) == 1 ? 1 : x.stride(1);
  int64_t element = image * x.stride(0) + channel * x.stride(1);
  return {address(x, element), channel_stride, x.stride(2), x.stride(3),
          channel};
}

// Runs work(a thread's scratch, task) for all tasks; worker i begins with
// those from first[i] to first[i + 1], since neighbours may write to the same
// cache lines, and then helps workers that are behind. A task that uses the
// scratch says so in it.
template <class Work>
void run_tasks(const std::vector<int64_t>& first, int64_t scratch_elements,
               at::ScalarType type, const Work& work) {
  struct alignas(64) Stretch {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t workers = static_cast<int64_t>(first.size()) - 1;
  std::vector<Stretch> stretches(workers);
  for (int64_t worker = 0; worker < workers; ++worker) {
    stretches[worker].next = first[worker];
    stretches[worker].end = first[worker + 1];
  }
  // Whole cache lines, so that threads share none and vectors are aligned.
  scratch_elements = (scratch_elements + 15) / 16 * 16;
  at::Tensor scratch = make_scratch(workers * scratch_elements, type);
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      Scratch mine{address(scratch, worker * scratch_elements), false};
      for (int64_t i = 0; i < workers; ++i) {
        Stretch& stretch = stretches[(worker + i) % workers];
        for (int64_t task; (task = stretch.next++) < stretch.end;)
          work(mine, task);
      }
    }
  });
}

// How a call cuts channels into vectors, and the compact weight with them.
struct Lanes {
  Lanes(const Kernels& kernels, at::ScalarType type, int64_t channels,
        int64_t cells)
      : kernels(kernels),
        storage(type == at::kDouble ? Storage::float64 : Storage::float32),
        channels(channels), taps(cells * cells),
        count(kernels.vector_bytes / at::elementSize(type)),
        groups((channels + count - 1) / count),
        group_bytes(taps * kernels.vector_bytes) {}

  int of(int64_t group) const {
    return static_cast<int>(std::min(count, channels - group * count));
  }

  // A group's channels of a contiguous weight of the type computed with.
  WeightTask task(const at::Tensor& weight, int64_t group,
                  void* packed) const {
    WeightTask task{};
    task.weight = {address(weight, group * count * taps), taps, 0, 1, 0};
    task.packed = packed;
    task.taps = static_cast<int>(taps);
    task.lanes = of(group);
    return task;
  }

  // Calls work(group) for all of them.
  template <class Work>
  void for_all(const Work& work) const {
    int64_t grain = std::max<int64_t>(1, 65536 / group_bytes);
    at::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) work(group);
    });
  }

  // Channels innermost: [channel group][row cell][column cell][lane].
  // `reverse`: the last cell first, which the grid's symmetry makes a flip.
  void pack(const at::Tensor& weight, bool reverse, char* packed) const {
    for_all([&](int64_t group) {
      WeightTask work = task(weight, group, packed + group * group_bytes);
      work.reverse = reverse;
      kernels.pack(storage, work);
    });
  }

  // The other way, the last cell first. `packed[group]` are as many packed
  // weights to sum up, of which the first is written to.
  void unpack(const std::vector<std::vector<const void*>>& packed,
              const at::Tensor& weight) const {
    for_all([&](int64_t group) {
      const std::vector<const void*>& parts = packed[group];
      WeightTask work = task(weight, group, const_cast<void*>(parts.front()));
      work.reverse = true;
      work.others = parts.data() + 1;
      work.num_others = static_cast<int>(parts.size()) - 1;
      kernels.unpack(storage, work);
    });
  }

  const Kernels& kernels;
  Storage storage;
  int64_t channels, taps;
  int64_t count;        // lanes of a vector
  int64_t groups;       // vectors that hold all channels
  int64_t group_bytes;  // of one packed group
};

void check(const at::Tensor& input, const at::Tensor& weight) {
  bool fits = input.dim() == 4 && weight.dim() == 4;
  TORCH_CHECK(fits && weight.size(0) == input.size(1),
              "expected a map (N, C, H, W) and a weight (C, 1, k', k')");
}

at::Tensor empty_like(const at::Tensor& map, bool channels_last) {
  return at::empty(map.sizes(),
                   map.options().memory_format(
                       channels_last ? at::MemoryFormat::ChannelsLast
                                     : at::MemoryFormat::Contiguous));
}

at::Tensor forward(const at::Tensor& input, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias,
                   at::IntArrayRef sizes, bool channels_last) {
  check(input, weight);
  at::Tensor output = empty_like(input, channels_last);
  if (output.numel() == 0) return output;
  const int64_t images = input.size(0), channels = input.size(1);
  const Kernels& kernels = *current_kernels();
  Plan plan(sizes.vec(), input.size(2), input.size(3), kernels.vector_bytes);
  const Geometry& g = plan.geometry;
  const at::ScalarType type = value_type(input);
  const Lanes lanes(kernels, type, channels, g.num_cells);
  const int64_t groups = lanes.groups;

  at::Tensor packed =
      make_scratch((lanes.taps + 1) * groups * lanes.count, type);
  char* packed_weight = address(packed);
  char* packed_bias = packed_weight + groups * lanes.group_bytes;
  lanes.pack(weight.to(type).contiguous(), false, packed_weight);
  if (bias.has_value()) {
    std::memset(packed_bias, 0, groups * kernels.vector_bytes);
    at::Tensor bias_values = bias->to(type).contiguous();
    std::memcpy(packed_bias, bias_values.const_data_ptr(),
                channels * at::elementSize(type));
  }

  const Share share = plan.share(images * groups, at::get_num_threads());
  const Storage storage = storage_of(input);
  auto work = [&](Scratch& scratch, int64_t index) {
    const Piece& piece = share.pieces[index];
    int64_t group = piece.map % groups, image = piece.map / groups;
    int64_t channel = group * lanes.count;
    char* group_bias = packed_bias + group * kernels.vector_bytes;
    kernels.forward(
        storage,
        {&g, map_of(input, image, channel), map_of(output, image, channel),
         packed_weight + group * lanes.group_bytes,
         bias.has_value() ? group_bias : nullptr, lanes.of(group), piece.begin,
         piece.end, scratch});
    scratch.used = true;
  };
  run_tasks(share.first, plan.scratch(lanes.count, false), type, work);
  return output;
}

// The gradient to the weight, and if there is a weight that to the input.
at::Tensor gradients(const at::Tensor& input, const at::Tensor& grad_output,
                     const std::optional<at::Tensor>& weight,
                     const at::Tensor& grad_input, at::IntArrayRef sizes) {
  TORCH_CHECK(input.dim() == 4 && input.sizes() == grad_output.sizes() &&
                  input.scalar_type() == grad_output.scalar_type(),
              "expected two maps (N, C, H, W) of one shape and dtype");
  const int64_t images = input.size(0), channels = input.size(1);
  const int64_t cells = sizes.size();
  const at::ScalarType type = value_type(input);
  at::Tensor grad =
      at::empty({channels, 1, cells, cells}, input.options().dtype(type));
  if (input.numel() == 0) return grad.zero_().to(input.scalar_type());
  const Kernels& kernels = *current_kernels();
  Plan plan(sizes.vec(), input.size(2), input.size(3), kernels.vector_bytes);
  const Geometry& g = plan.geometry;
  const Lanes lanes(kernels, type, channels, cells);
  const int64_t groups = lanes.groups;

  at::Tensor packed;
  char* packed_weight = nullptr;
  if (weight.has_value()) {
    packed = make_scratch(lanes.taps * groups * lanes.count, type);
    packed_weight = address(packed);
    lanes.pack(weight->to(type).contiguous(), true, packed_weight);
  }

  // A stretch of pieces is one task. It sums the gradients of a group into a
  // place of its own, so results do not depend on which worker is faster. Two
  // tasks a worker balance better, where more cuts and places do not matter.
  const int64_t workers = at::get_num_threads();
  const bool large = images * groups >= 4 * workers &&
                     images * g.height * g.width >= 1024 * workers;
  const int64_t each = large ? 2 : 1;
  const int64_t tasks = each * workers;
  const Share share = plan.share(images * groups, tasks);
  std::vector<int64_t> first, places(tasks * groups, -1);
  for (int64_t task = 0; task <= tasks; task += each) first.push_back(task);
  int64_t num_places = 0;
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t i = share.first[task]; i < share.first[task + 1]; ++i) {
      int64_t& place = places[task * groups + share.pieces[i].map % groups];
      if (place < 0) place = num_places++;
    }
  at::Tensor partials =
      make_scratch(num_places * lanes.taps * lanes.count, type);
  auto place_of = [&](int64_t task, int64_t group) {
    return address(partials) +
           places[task * groups + group] * lanes.group_bytes;
  };
  const Storage storage = storage_of(input);
  auto work = [&](Scratch& scratch, int64_t task) {
    const void* cleared = nullptr;  // the last place that was
    for (int64_t i = share.first[task]; i < share.first[task + 1]; ++i) {
      const Piece& piece = share.pieces[i];
      int64_t group = piece.map % groups, image = piece.map / groups;
      int64_t channel = group * lanes.count;
      BackwardTask work{};
      work.geometry = &g;
      work.grad_output = map_of(grad_output, image, channel);
      work.input = map_of(input, image, channel);
      if (packed_weight != nullptr) {
        work.grad_input = map_of(grad_input, image, channel);
        work.weight = packed_weight + group * lanes.group_bytes;
      }
      work.grad_weight = place_of(task, group);
      // A task meets its places in their order.
      if (work.grad_weight > cleared) {
        std::memset(work.grad_weight, 0, lanes.group_bytes);
        cleared = work.grad_weight;
      }
      work.lanes = lanes.of(group);
      work.begin = piece.begin;
      work.end = piece.end;
      work.scratch = scratch;
      kernels.backward(storage, work);
      scratch.used = true;
    }
  };
  run_tasks(first, plan.scratch(lanes.count, true), type, work);
  std::vector<std::vector<const void*>> of_group(groups);
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t group = 0; group < groups; ++group)
      if (places[task * groups + group] >= 0)
        of_group[group].push_back(place_of(task, group));
  lanes.unpack(of_group, grad);
  return grad.to(input.scalar_type());
}

at::Tensor weight_grad(const at::Tensor& input, const at::Tensor& grad_output,
                       at::IntArrayRef sizes) {
  return gradients(input, grad_output, std::nullopt, at::Tensor(), sizes);
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& input,
                                            const at::Tensor& weight,
                                            const at::Tensor& grad_output,
                                            at::IntArrayRef sizes,
                                            bool channels_last) {
  check(input, weight);
  at::Tensor grad_input = empty_like(input, channels_last);
  return {grad_input,
          gradients(input, grad_output, weight, grad_input, sizes)};
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

bool set_poison_scratch(bool poison) {
  return poison_scratch.exchange(poison);
}

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
  m.def(
      "backward(Tensor input, Tensor weight, Tensor grad_output, int[] sizes, "
      "bool channels_last) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.impl("backward", c10::DispatchKey::CPU, TORCH_FN(backward));
  m.def("instruction_sets() -> str[]", &instruction_sets);
  m.def("use_instruction_set(str name) -> str", &use_instruction_set);
  m.def("set_poison_scratch(bool poison) -> bool", &set_poison_scratch);
}

}  // namespace pelk
