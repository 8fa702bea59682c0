// Compares the kernels behind pelk_mm.h with prefix sums, on random calls. For
// sanitizers, and for machines that have no Python. Arguments:
//     cases=300 seed=1 first=0  how many random cases, which, and from where
//     threads=5                 the most that a call asks for
//     work=4000000              the most multiply-adds of a case
//     sets=avx2,wide            instead of all sets of instructions
//     spoil=results|memory      a mistake on purpose, which has to be noticed
//
// All values are small whole numbers: float32 holds every sum of them exactly,
// in any order, so results have to be equal to what is expected.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "call.h"
#include "pelk_mm.h"
#include "tensors.h"

#ifdef SELFCHECK_WIDE
namespace pelk {
extern const Kernels kernels_wide;  // kernel_wide.cpp
}
#endif

namespace selfcheck {
namespace {

[[noreturn]] void fail(const std::string& problem) {
  throw std::runtime_error(problem);
}

void require(bool fine, const char* problem) {
  if (!fine) fail(problem);
}

// What an OpenMP runtime lends, with threads that ThreadSanitizer understands.
struct Member {
  int number = 0, count = 1;
  bool inside = false;
};

thread_local Member member;
int64_t teams = 0, largest_team = 0, missing_threads = 0;

void run_team(void (*work)(void*), void* data, unsigned threads, unsigned) {
  ++teams;
  largest_team = std::max<int64_t>(largest_team, threads);
  // A runtime may give fewer threads than were asked for.
  const int64_t given = std::max<int64_t>(1, threads - missing_threads);
  auto run = [=](int number) {
    member = {number, static_cast<int>(given), true};
    work(data);
    member = {};
  };
  std::vector<std::thread> others;
  for (int number = 1; number < given; ++number)
    others.emplace_back(run, number);
  run(0);
  for (std::thread& other : others) other.join();
}

int member_number() { return member.number; }
int member_count() { return member.count; }
int in_team() { return member.inside; }

void lend_threads() {
  pelk_mm_use_openmp(reinterpret_cast<void*>(run_team),
                     reinterpret_cast<void*>(member_number),
                     reinterpret_cast<void*>(member_count),
                     reinterpret_cast<void*>(in_team));
}

// The sums of all boxes of one map.
class Boxes {
 public:
  Boxes(const double* map, int64_t height, int64_t width)
      : height_(height), width_(width),
        sums_(static_cast<size_t>((height + 1) * (width + 1))) {
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x)
        entry(sums_, (y + 1) * (width + 1) + x + 1) =
            *map++ + at(y, x + 1) + at(y + 1, x) - at(y, x);
  }

  // Of rows y ... y + rows - 1; what lies outside of the map is 0.
  double sum(int64_t y, int64_t x, int64_t rows, int64_t columns) const {
    const int64_t top = std::clamp<int64_t>(y, 0, height_);
    const int64_t left = std::clamp<int64_t>(x, 0, width_);
    const int64_t bottom = std::clamp<int64_t>(y + rows, 0, height_);
    const int64_t right = std::clamp<int64_t>(x + columns, 0, width_);
    return at(bottom, right) - at(top, right) - at(bottom, left) +
           at(top, left);
  }

 private:
  double at(int64_t y, int64_t x) const {
    return entry(sums_, y * (width_ + 1) + x);
  }

  int64_t height_, width_;
  Values sums_;
};

using Sizes = std::vector<int64_t>;

// A call, and what has to come of it.
struct Case {
  Case(Random& random, int64_t threads, Extents shape, Sizes sizes)
      : dtype(random.below(3)), threads(threads),
        missing_threads(random.one_in(4) ? 1 : 0), poison(random.one_in(2)),
        biased(random.one_in(2)), shape(shape), sizes(sizes),
        cells(static_cast<int64_t>(sizes.size())), input(draw_map(random)),
        grad_output(draw_map(random)), weight(make_weight(cells)),
        bias(make_weight(1)),
        output_strides(draw_strides(random, shape, true)),
        grad_input_strides(draw_strides(random, shape, true)) {
    for (const Tensor* tensor : {&input, &grad_output, &weight, &bias})
      tensor->fill(random);
  }

  // A map that is read.
  Tensor draw_map(Random& random) const {
    const int64_t before = random.one_in(2) ? random.between(1, 3) : 0;
    return {dtype, shape, draw_strides(random, shape, false), before};
  }

  Tensor make_weight(int64_t side) const {
    return {
        dtype, {{shape.of[1], 1, side, side}}, {{side * side, 0, side, 1}}};
  }

  int64_t dtype, threads, missing_threads;
  bool poison, biased;
  Extents shape;
  Sizes sizes;
  int64_t cells;
  Tensor input, grad_output, weight, bias;
  Extents output_strides, grad_input_strides;
};

struct Expected {
  Values output, grad_input, grad_weight;
};

// Calls visit(pixel, tap of the weight, sum of what the tap's cell covers).
template <class Visit>
void for_boxes(const Case& c, const Values& maps, const Visit& visit) {
  const int64_t height = c.shape.of[2], width = c.shape.of[3];
  const int64_t half =
      std::accumulate(c.sizes.begin(), c.sizes.end(), int64_t{0}) / 2;
  for (int64_t map = 0; map < c.shape.of[0] * c.shape.of[1]; ++map) {
    const int64_t first = map * height * width;
    const Boxes boxes(&entry(maps, first), height, width);
    int64_t tap = map % c.shape.of[1] * c.cells * c.cells;
    int64_t y = -half;
    for (int64_t rows : c.sizes) {
      int64_t x = -half;
      for (int64_t columns : c.sizes) {
        for (int64_t i = 0; i < height * width; ++i)
          visit(first + i, tap,
                boxes.sum(i / width + y, i % width + x, rows, columns));
        x += columns;
        ++tap;
      }
      y += rows;
    }
  }
}

Expected expect(const Case& c) {
  const Values input = c.input.values(), bias = c.bias.values();
  const Values weight = c.weight.values(), grad = c.grad_output.values();
  Expected e{Values(input.size()), Values(input.size()),
             Values(weight.size())};
  const int64_t taps = c.cells * c.cells;
  const int64_t pixels = c.shape.of[2] * c.shape.of[3];
  if (c.biased)
    for (int64_t i = 0; i < static_cast<int64_t>(input.size()); ++i)
      entry(e.output, i) = entry(bias, i / pixels % c.shape.of[1]);
  for_boxes(c, input, [&](int64_t pixel, int64_t tap, double sum) {
    entry(e.output, pixel) += entry(weight, tap) * sum;
    entry(e.grad_weight, tap) += entry(grad, pixel) * sum;
  });
  for_boxes(c, grad, [&](int64_t pixel, int64_t tap, double sum) {
    const int64_t opposite = tap + taps - 1 - 2 * (tap % taps);
    entry(e.grad_input, pixel) += entry(weight, opposite) * sum;
  });
  return e;
}

// Instructions to run a case with: those of the library by name, or kernels
// that it does not have.
struct Set {
  std::string name;
  const pelk::Kernels* kernels;
  int64_t calls;
};

const char* run(Set& set, const pelk_mm_call& call, bool backward) {
  ++set.calls;
  if (set.kernels == nullptr) {
    pelk_mm_instruction_set(set.name.c_str());
    return (backward ? pelk_mm_backward : pelk_mm_forward)(&call);
  }
  (backward ? pelk::backward : pelk::forward)(call, *set.kernels);
  return nullptr;
}

// Without what differs from call to call.
pelk_mm_call call_of(const Case& c) {
  pelk_mm_call call{};
  call.dtype = c.dtype;
  call.threads = c.threads;
  std::copy_n(c.shape.of, 4, call.shape);
  call.sizes = c.sizes.data();
  call.num_sizes = c.cells;
  call.input = c.input.map();
  return call;
}

void require_equal(const char* name, const Tensor& got,
                   const Values& expected) {
  const Values values = got.values();
  for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
    const double value = entry(values, i);
    const double right = got.rounded(entry(expected, i));
    if (!(value == right))
      fail(std::string(name) + "[" + std::to_string(i) + "] is " +
           std::to_string(value) + ", expected " + std::to_string(right));
  }
  if (got.gaps_written())
    fail(std::string(name) + " is written to between its elements");
}

// The three calls that there are.
void check(const Case& c, const Expected& expected, Set& set) {
  const std::string inputs = c.input.bytes() + c.grad_output.bytes() +
                             c.weight.bytes() + c.bias.bytes();
  const Tensor output(c.dtype, c.shape, c.output_strides);
  const Tensor grad_input(c.dtype, c.shape, c.grad_input_strides);
  const Tensor grad_weight = c.make_weight(c.cells);
  const Tensor only_grad_weight = c.make_weight(c.cells);
  pelk_mm_poison_scratch(c.poison);
  missing_threads = c.missing_threads;
  largest_team = 0;

  pelk_mm_call call = call_of(c);
  auto run_one = [&](bool backward) {
    if (const char* error = run(set, call, backward)) fail(error);
  };
  call.output = output.map();
  call.weight = c.weight.data();
  call.bias = c.biased ? c.bias.data() : nullptr;
  run_one(false);
  call.output = {};
  call.bias = nullptr;
  call.grad_output = c.grad_output.map();
  call.grad_input = grad_input.map();
  call.grad_weight = grad_weight.data();
  run_one(true);
  call.weight = nullptr;
  call.grad_input = {};
  call.grad_weight = only_grad_weight.data();
  run_one(true);

  require_equal("output", output, expected.output);
  require_equal("grad_input", grad_input, expected.grad_input);
  require_equal("grad_weight", grad_weight, expected.grad_weight);
  require_equal("grad_weight alone", only_grad_weight, expected.grad_weight);
  require(largest_team <= c.threads, "too many threads are asked for");
  require(inputs == c.input.bytes() + c.grad_output.bytes() +
                        c.weight.bytes() + c.bias.bytes(),
          "an input is written to");
}

// Symmetric, of an odd sum: see pelk_mm/ops/sharing_grid.py.
Sizes draw_sizes(Random& random) {
  Sizes side(static_cast<size_t>(random.below(8)), 1);
  const int64_t outer = random.below(5), kind = random.below(4);
  for (int64_t i = 0, size = 2; i < outer; ++i, size *= 2)
    side.push_back(kind == 0   ? size
                   : kind == 1 ? random.between(1, 9)
                   : kind == 2 ? random.between(1, 40)
                               : random.between(1, 10000));
  Sizes sizes(side.rbegin(), side.rend());
  sizes.push_back(random.one_in(3) ? 2 * random.below(5) + 1 : 1);
  sizes.insert(sizes.end(), side.begin(), side.end());
  return sizes;
}

// With at most `work` multiply-adds, most often with far fewer.
Extents draw_shape(Random& random, int64_t cells, int64_t work) {
  auto extent = [&](int64_t usual, int64_t most) {
    return random.between(1, random.one_in(3) ? most : usual);
  };
  Extents shape{
      {extent(3, 12), extent(9, 40), extent(12, 70), extent(12, 70)}};
  const int64_t most = work / (random.one_in(8) ? 1 : 16) / (cells * cells);
  const int64_t* n = shape.of;
  for (int d = 0; n[0] * n[1] * n[2] * n[3] > most && d < 40; ++d)
    shape.of[d % 4] = (n[d % 4] + 1) / 2;
  return shape;
}

std::string describe(const Case& c) {
  const char* dtypes[] = {"float32", "float64", "bfloat16"};
  std::string text = dtypes[c.dtype];
  for (int64_t n : c.shape.of) text += " " + std::to_string(n);
  text += ", cells";
  for (int64_t size : c.sizes) text += " " + std::to_string(size);
  return text + ", threads " + std::to_string(c.threads);
}

struct Options {
  int64_t cases = 300, seed = 1, first = 0, threads = 5, work = 4000000;
  std::string sets, spoil;
};

// Runs a case with all sets; says so if it fails.
bool check_case(const Options& options, int64_t number,
                std::vector<Set>& sets) {
  Random random(options.seed, number);
  const Sizes sizes = draw_sizes(random);
  const int64_t threads = random.between(1, options.threads);
  const Extents shape =
      draw_shape(random, static_cast<int64_t>(sizes.size()), options.work);
  Case c(random, threads, shape, sizes);
  Expected expected = expect(c);
  if (options.spoil == "results") expected.grad_weight.back() += 1;
  if (options.spoil == "memory") c.input.cut_short();
  for (Set& set : sets) try {
      check(c, expected, set);
    } catch (const std::exception& problem) {
      std::printf(
          "FAILED: %s\n  %s\n  again: selfcheck cases=1 seed=%lld "
          "first=%lld threads=%lld work=%lld sets=%s\n",
          problem.what(), describe(c).c_str(),
          static_cast<long long>(options.seed), static_cast<long long>(number),
          static_cast<long long>(options.threads),
          static_cast<long long>(options.work), set.name.c_str());
      return false;
    }
  return true;
}

// Small calls have one thread, large ones all that they may, and neither has
// a team inside of one or without what a runtime lends.
void check_teams(Set& set) {
  Random random(1, 0);
  auto teams_of = [&](int64_t side, int64_t threads) {
    const Case c(random, threads, {{1, 400, side, side}},
                 {4, 2, 1, 1, 1, 1, 1, 1, 1, 2, 4});
    const Tensor output(c.dtype, c.shape, c.output_strides);
    pelk_mm_call call = call_of(c);
    call.output = output.map();
    call.weight = c.weight.data();
    teams = 0;
    run(set, call, false);
    return teams;
  };
  require(teams_of(4, 4) == 0, "a tiny call has more than one thread");
  require(teams_of(12, 4) > 0, "a large call has one thread");
  require(teams_of(12, 1) == 0, "a call has threads that it may not have");
  member.inside = true;
  require(teams_of(12, 4) == 0, "a call in a team starts another one");
  member.inside = false;
  pelk_mm_use_openmp(nullptr, nullptr, nullptr, nullptr);
  require(teams_of(12, 4) == 0, "a call has threads that nobody lent");
  lend_threads();
}

void check_refusals() {
  require(pelk_mm_abi() == PELK_MM_ABI, "the ABI is another one");
  require(!pelk_mm_instruction_set("none"), "there are instructions 'none'");
  pelk_mm_call call{};
  call.threads = call.num_sizes = 1;
  std::fill_n(call.shape, 4, 1);
  for (int64_t* wrong : {&call.dtype, &call.threads, &call.num_sizes,
                         &call.shape[0], &call.shape[3]}) {
    const int64_t right = *wrong;
    *wrong = -1;
    require(pelk_mm_forward(&call) && pelk_mm_backward(&call),
            "a wrong call is not refused");
    *wrong = right;
  }
}

std::vector<Set> find_sets(const std::string& wanted) {
  std::vector<Set> sets;
  auto add = [&](const std::string& name, const pelk::Kernels* kernels) {
    if (wanted.empty() ||
        ("," + wanted + ",").find("," + name + ",") != std::string::npos)
      sets.push_back({name, kernels, 0});
  };
  std::istringstream names(pelk_mm_instruction_sets());
  for (std::string name; names >> name;) add(name, nullptr);
#ifdef SELFCHECK_WIDE
  add("wide", &pelk::kernels_wide);
#endif
  return sets;
}

Options read_options(int count, char** arguments) {
  Options options;
  const std::map<std::string, int64_t*> numbers{{"cases", &options.cases},
                                                {"seed", &options.seed},
                                                {"first", &options.first},
                                                {"threads", &options.threads},
                                                {"work", &options.work}};
  const std::map<std::string, std::string*> texts{{"sets", &options.sets},
                                                  {"spoil", &options.spoil}};
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const size_t equals = std::min(argument.find('='), argument.size() - 1);
    const std::string name = argument.substr(0, equals);
    const std::string value = argument.substr(equals + 1);
    if (numbers.count(name))
      *numbers.at(name) = std::atoll(value.c_str());
    else if (texts.count(name))
      *texts.at(name) = value;
    else
      fail("there is no argument " + argument);
  }
  return options;
}

int main(int count, char** arguments) {
  const Options options = read_options(count, arguments);
  std::vector<Set> sets = find_sets(options.sets);
  require(!sets.empty(), "this machine has no such set of instructions");
  lend_threads();
  check_refusals();
  check_teams(sets.front());
  for (int64_t i = 0; i < options.cases; ++i)
    if (!check_case(options, options.first + i, sets)) return 1;
  for (const Set& set : sets)
    std::printf("%s: %lld calls are right\n", set.name.c_str(),
                static_cast<long long>(set.calls));
  return 0;
}

}  // namespace
}  // namespace selfcheck

int main(int count, char** arguments) {
  try {
    return selfcheck::main(count, arguments);
  } catch (const std::exception& problem) {
    std::printf("FAILED: %s\n", problem.what());
    return 1;
  }
}
