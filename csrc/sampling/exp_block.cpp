// Compiled with -O3: every function below is one loop that the compiler turns into vectors. The operations and their
// order are those of fixed_exp, and each is rounded by itself, so that the width of a vector changes no bit.
#include "sampling/exp_block.h"

#include "sampling/fixed_exp.h"

namespace mimo_rt {
namespace {

[[gnu::always_inline]] inline void exp_loop(const double* x, double* __restrict y) {
  for (uint32_t i = 0; i < kExpBlock; ++i) y[i] = fixed_exp(x[i]);
}

void exp_baseline(const double* x, double* y) { exp_loop(x, y); }

#if defined(MIMO_RT_X86)
[[gnu::target("avx2")]] void exp_avx2(const double* x, double* y) { exp_loop(x, y); }
#endif

using ExpBlock = void (*)(const double*, double*);

ExpBlock choose_exp() {
#if defined(MIMO_RT_X86)
  __builtin_cpu_init();  // this may run before the compiler's own initialisation
  if (__builtin_cpu_supports("avx2")) return exp_avx2;
#endif
  return exp_baseline;
}

const ExpBlock kChosen = choose_exp();  // when the library is loaded: a static of a function takes a lock

}  // namespace

void fixed_exp_block(const double* x, double* y) { kChosen(x, y); }

}  // namespace mimo_rt
