#include "threads.h"

namespace pelk {
namespace {

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread)();
  int (*threads)();
  int (*inside)();
};

OpenMP openmp{};

struct Team {
  int64_t count;
  void (*work)(void*, int64_t);
  void* data;
};

void run_member(void* data) {
  const Team& team = *static_cast<const Team*>(data);
  // The runtime may give fewer threads than were asked for.
  for (int64_t i = openmp.thread(); i < team.count; i += openmp.threads())
    team.work(team.data, i);
}

}  // namespace

void use_openmp(void* parallel, void* thread, void* threads, void* inside) {
  openmp = {reinterpret_cast<decltype(openmp.parallel)>(parallel),
            reinterpret_cast<decltype(openmp.thread)>(thread),
            reinterpret_cast<decltype(openmp.threads)>(threads),
            reinterpret_cast<decltype(openmp.inside)>(inside)};
}

void run_team(int64_t count, int64_t threads, void (*work)(void*, int64_t),
              void* data) {
  if (count > 1 && threads > 1 && openmp.parallel && !openmp.inside()) {
    Team team{count, work, data};
    // Always all of them: libgomp ends the threads that a smaller team leaves.
    openmp.parallel(run_member, &team, static_cast<unsigned>(threads), 0);
  } else {
    for (int64_t i = 0; i < count; ++i) work(data, i);
  }
}

}  // namespace pelk
