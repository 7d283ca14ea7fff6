// Uses every function of csrc/cuda/device/ptx once, so that ptxas sees each instruction text. Only
// compiled, never run.
#include "cuda/device/ptx/ptx.cuh"

namespace ptx = mimo_rt::ptx;

__global__ void __launch_bounds__(128, 1) use_every_wrapper(uint32_t* words, float* floats) {
  uint8_t* shared = ptx::dynamic_shared_memory();
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  ptx::lower_registers<40>();
  ptx::raise_registers<64>();
  ptx::mbarrier_init(barrier, 1);
  ptx::fence_mbarrier_init();
  ptx::fence_proxy_async();
  ptx::mbarrier_arrive_expect_tx(barrier, 128);
  ptx::bulk_copy(shared + 128, words, 64, barrier, ptx::evict_first_policy());
  ptx::bulk_copy(shared + 192, words, 64, barrier, ptx::evict_last_policy());
  const uint64_t start_ns = ptx::global_timer_ns();
  while (!ptx::mbarrier_test_wait(barrier, 0) && !ptx::mbarrier_try_wait(barrier, 0)) {
    ptx::sleep_ns(20);
    if (ptx::global_timer_ns() - start_ns > 1000) ptx::trap();
  }
  ptx::mbarrier_arrive(barrier);
  ptx::named_barrier_sync(1, 128);
  ptx::sync_warp();
  uint32_t a[4], b_rows[4], b[2] = {words[0], words[1]};
  float c[4] = {};
  ptx::ldmatrix_x4(a, shared + 128 + threadIdx.x % 32 * 16);
  ptx::ldmatrix_x4_transposed(b_rows, shared + 128 + threadIdx.x % 32 * 16);
  b[0] += b_rows[1];
  a[0] = ptx::mul_bf16x2(a[0], ptx::to_bf16x2(floats[0], floats[1]));
  ptx::mma_m16n8k16(c, a, b);
  b[1] = ptx::pick_bytes(b[0], ptx::to_e4m3x2(floats[2], floats[3]), words[5]);
  ptx::mma_m16n8k32_e4m3(c, a, b);
  const ptx::Words4 kept = ptx::load_16_bytes_keep(words + 4);
  const ptx::Words4 once = ptx::load_16_bytes_once(words + 8);
  c[2] = ptx::as_float(words[3]) + ptx::low_bf16(a[2]) * ptx::high_bf16(a[3]);
  c[0] = ptx::exp2_approx(ptx::shuffle(c[0], 3)) + ptx::shuffle_xor(c[1], 1);
  floats[threadIdx.x] = c[0] + c[2];
  ptx::add_release_gpu(words, ptx::load_acquire_gpu(words + 1) + kept.word[0] + once.word[1]);
  auto* pairs = reinterpret_cast<uint64_t*>(words + 12);
  ptx::store_relaxed_gpu(pairs, ptx::load_relaxed_gpu(pairs + 1));
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const uint64_t columns = ptx::wgmma_columns(shared + 1024);
  float sums[1][4] = {}, wide[16][4] = {};
  ptx::wgmma_fence();
  ptx::wgmma_m64k16(sums, a, columns);
  ptx::wgmma_m64k16(wide, a, columns);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(sums);
  ptx::wgmma_pin(wide);
  floats[128 + threadIdx.x] = sums[0][1] + wide[15][2];
#endif
  ptx::store_release_system(words + 16, ptx::compare_exchange_gpu(words + 17, 0, 1));
  words[22] = ptx::reduce_max(words[22]) - ptx::reduce_min(words[23]);
  words[20] = ptx::count_to_gpu(words + 21, 3);
  words[19] += static_cast<uint32_t>(ptx::load_relaxed_system(reinterpret_cast<uint64_t*>(words + 18)));
}
