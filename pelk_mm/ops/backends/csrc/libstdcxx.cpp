// The headers of GCC 11 and later call this function, which no libstdc++
// before theirs has. With one of its own, which the version script hides, the
// library runs with that of GCC 8, as manylinux_2_28 has to.
#include <new>

#if defined(__linux__) && defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 11
namespace std {

// Weak, for those who link libstdc++ statically and get two of them.
[[noreturn]] __attribute__((weak)) void __throw_bad_array_new_length() {
  throw bad_alloc();
}

}  // namespace std
#endif
