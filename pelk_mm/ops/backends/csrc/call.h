// One call of the library: shares its work among threads.
#pragma once

#include "geometry.h"
#include "pelk_mm.h"

namespace pelk {

void forward(const pelk_mm_call& call, const Kernels& kernels);
void backward(const pelk_mm_call& call, const Kernels& kernels);

}  // namespace pelk
