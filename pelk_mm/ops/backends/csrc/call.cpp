#include "call.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "memory.h"
#include "plan.h"
#include "threads.h"

namespace pelk {
namespace {

int64_t bytes_of(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

// How a call cuts channels into vectors, and the compact weight with them.
struct Lanes {
  Lanes(const pelk_mm_call& call, const Kernels& kernels)
      : kernels(kernels), storage(static_cast<Storage>(call.dtype)),
        threads(call.threads), channels(call.shape[1]),
        taps(call.num_sizes * call.num_sizes),
        count(kernels.vector_bytes / (storage == Storage::float64 ? 8 : 4)),
        groups((channels + count - 1) / count),
        group_bytes(taps * kernels.vector_bytes) {}

  int of(int64_t group) const {
    return static_cast<int>(std::min(count, channels - group * count));
  }

  // What is the same in both directions.
  Task task(const Geometry& geometry, const Piece& piece,
            const Scratch& scratch) const {
    return {&geometry,   piece.images, of(piece.group),
            piece.begin, piece.end,    scratch};
  }

  // The channels of a group, from an image on.
  Map map(const pelk_mm_map& x, const Piece& piece) const {
    const int64_t channel = piece.group * count;
    const int64_t element =
        piece.image * x.strides[0] + channel * x.strides[1];
    // A dimension of one position may carry any stride: make it look like the
    // layout that it does not contradict.
    return {static_cast<char*>(x.data) + element * bytes_of(storage),
            x.strides[0],
            channels == 1 ? 1 : x.strides[1],
            x.strides[2],
            x.strides[3],
            channel};
  }

  // A group's channels of a weight (C, 1, k', k'), or of a bias: one tap.
  WeightTask weight_task(const void* weight, int64_t group, int64_t taps,
                         void* packed) const {
    char* data = static_cast<char*>(const_cast<void*>(weight));
    WeightTask task{};
    task.weight = {
        data + group * count * taps * bytes_of(storage), 0, taps, 0, 1, 0};
    task.packed = packed;
    task.taps = static_cast<int>(taps);
    task.lanes = of(group);
    return task;
  }

  // Calls work(group) for all of them.
  template <class Work>
  void for_all(int64_t workers, const Work& work) const {
    const int64_t members =
        std::clamp<int64_t>(groups * group_bytes / 65536, 1, workers);
    run_team(members, threads, [&](int64_t member) {
      for (int64_t group = groups * member / members;
           group < groups * (member + 1) / members; ++group)
        work(group);
    });
  }

  // Channels innermost: [channel group][row cell][column cell][lane].
  // `reverse`: the last cell first, which the grid's symmetry makes a flip.
  Memory pack(const void* weight, bool reverse, int64_t workers) const {
    Memory packed = make_memory(groups * group_bytes);
    for_all(workers, [&](int64_t group) {
      WeightTask work =
          weight_task(weight, group, taps, packed.get() + group * group_bytes);
      work.reverse = reverse;
      kernels.pack(storage, work);
    });
    return packed;
  }

  // The other way, the last cell first. `packed[group]` are as many packed
  // weights to sum up, of which the first is written to.
  void unpack(const std::vector<std::vector<void*>>& packed, void* weight,
              int64_t workers) const {
    for_all(workers, [&](int64_t group) {
      const std::vector<void*>& parts = packed[index(group)];
      WeightTask work = weight_task(weight, group, taps, parts.front());
      work.reverse = true;
      work.others = parts.data() + 1;
      work.num_others = static_cast<int>(parts.size()) - 1;
      kernels.unpack(storage, work);
    });
  }

  Memory pack_bias(const void* bias) const {
    if (bias == nullptr) return nullptr;
    Memory packed = make_memory(groups * kernels.vector_bytes);
    for (int64_t group = 0; group < groups; ++group)
      kernels.pack(storage,
                   weight_task(bias, group, 1,
                               packed.get() + group * kernels.vector_bytes));
    return packed;
  }

  const Kernels& kernels;
  Storage storage;
  int64_t threads, channels, taps;
  int64_t count;        // lanes of a vector
  int64_t groups;       // vectors that hold all channels
  int64_t group_bytes;  // of one packed group
};

// Runs work(a worker's scratch, task) for all tasks; worker i begins with
// those from first[i] to first[i + 1], since neighbours may write to the same
// cache lines, and then helps workers that are behind.
template <class Work>
void run_tasks(const std::vector<int64_t>& first, int64_t threads,
               int64_t scratch_bytes, const Work& work) {
  struct alignas(kLine) Stretch {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const size_t workers = first.size() - 1;
  std::vector<Stretch> stretches(workers);
  for (size_t worker = 0; worker < workers; ++worker) {
    stretches[worker].next = first[worker];
    stretches[worker].end = first[worker + 1];
  }
  scratch_bytes = whole_lines(scratch_bytes);
  Memory scratch = make_memory(static_cast<int64_t>(workers) * scratch_bytes);
  run_team(static_cast<int64_t>(workers), threads, [&](int64_t worker) {
    Scratch mine{scratch.get() + worker * scratch_bytes, false};
    for (size_t i = 0; i < workers; ++i) {
      Stretch& stretch = stretches[(index(worker) + i) % workers];
      for (int64_t task; (task = stretch.next++) < stretch.end;)
        work(mine, task);
    }
  });
}

// Where tasks sum gradients to the weight: each has a place of its own for
// every group that it meets, so results do not depend on which is faster.
class Places {
 public:
  Places(const Share& share, int64_t tasks, const Lanes& lanes)
      : groups_(lanes.groups), bytes_(lanes.group_bytes),
        places_(index(tasks * groups_), -1) {
    int64_t count = 0;
    for (int64_t task = 0; task < tasks; ++task)
      for (int64_t i = share.first[index(task)];
           i < share.first[index(task + 1)]; ++i) {
        const int64_t group = share.pieces[index(i)].group;
        int64_t& place = places_[index(task * groups_ + group)];
        if (place < 0) place = count++;
      }
    memory_ = make_memory(count * bytes_);
  }

  // Later tasks have later places, and each meets its own in their order.
  char* of(int64_t task, int64_t group) const {
    const int64_t place = places_[index(task * groups_ + group)];
    return place < 0 ? nullptr : memory_.get() + place * bytes_;
  }

 private:
  int64_t groups_, bytes_;
  std::vector<int64_t> places_;
  Memory memory_;
};

}  // namespace

void forward(const pelk_mm_call& call, const Kernels& kernels) {
  const Lanes lanes(call, kernels);
  const Plan plan(call, kernels.vector_bytes, lanes.groups);
  const Memory weight = lanes.pack(call.weight, false, plan.workers);
  const Memory bias = lanes.pack_bias(call.bias);
  const Share share = plan.share(plan.workers);
  auto work = [&](Scratch& scratch, int64_t task) {
    const Piece& piece = share.pieces[index(task)];
    ForwardTask work{};
    static_cast<Task&>(work) = lanes.task(plan.geometry, piece, scratch);
    work.input = lanes.map(call.input, piece);
    work.output = lanes.map(call.output, piece);
    work.weight = weight.get() + piece.group * lanes.group_bytes;
    if (bias) work.bias = bias.get() + piece.group * kernels.vector_bytes;
    kernels.forward(lanes.storage, work);
    scratch.used = true;
  };
  run_tasks(share.first, call.threads, plan.scratch_bytes(false), work);
}

void backward(const pelk_mm_call& call, const Kernels& kernels) {
  const Lanes lanes(call, kernels);
  const Plan plan(call, kernels.vector_bytes, lanes.groups);
  const int64_t workers = plan.workers;
  const bool to_input = call.grad_input.data != nullptr;
  Memory weight;
  if (to_input) weight = lanes.pack(call.weight, true, workers);

  // A stretch of pieces is one task. Two of them a worker balance better,
  // where more cuts and places do not matter.
  const int64_t pixels = call.shape[0] * call.shape[2] * call.shape[3];
  const bool large = plan.maps() >= 4 * workers && pixels >= 1024 * workers;
  const int64_t each = large ? 2 : 1, tasks = each * workers;
  const Share share = plan.share(tasks);
  const Places places(share, tasks, lanes);
  auto work = [&](Scratch& scratch, int64_t task) {
    const char* cleared = nullptr;  // the last place that was
    for (int64_t i = share.first[index(task)];
         i < share.first[index(task + 1)]; ++i) {
      const Piece& piece = share.pieces[index(i)];
      char* place = places.of(task, piece.group);
      if (place > cleared) {
        std::memset(place, 0, index(lanes.group_bytes));
        cleared = place;
      }
      BackwardTask work{};
      static_cast<Task&>(work) = lanes.task(plan.geometry, piece, scratch);
      work.grad_output = lanes.map(call.grad_output, piece);
      work.input = lanes.map(call.input, piece);
      if (to_input) {
        work.grad_input = lanes.map(call.grad_input, piece);
        work.weight = weight.get() + piece.group * lanes.group_bytes;
      }
      work.grad_weight = place;
      kernels.backward(lanes.storage, work);
      scratch.used = true;
    }
  };
  std::vector<int64_t> first;
  for (int64_t task = 0; task <= tasks; task += each) first.push_back(task);
  run_tasks(first, call.threads, plan.scratch_bytes(true), work);

  std::vector<std::vector<void*>> of_group(index(lanes.groups));
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t group = 0; group < lanes.groups; ++group)
      if (char* place = places.of(task, group))
        of_group[index(group)].push_back(place);
  lanes.unpack(of_group, call.grad_weight, workers);
}

}  // namespace pelk
