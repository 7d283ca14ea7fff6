// The products of block_scaled.h: CUTLASS's grouped GEMM for tcgen05 with block scales, and a kernel
// that describes the groups to it. For sm_100a alone; takes a minute and 4 GB to compile.
//
// Weights are the M operand and slots the N operand, because experts have hundreds of rows and, in
// a prefill chunk, a few dozen slots: with 128 x 64 tiles little of a tile is padding, and weights
// of experts with few slots are multiplied faster, on paper, than memory delivers them.
#include "cuda/gemm/block_scaled.h"

#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/dispatch_policy.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "cuda/gemm/block_scaled_groups.h"
#include "cuda/launch.cuh"

namespace mimo_rt::cuda {
namespace {

namespace gemm = cutlass::gemm;
namespace epilogue = cutlass::epilogue;
using cutlass::layout::ColumnMajor, cutlass::layout::RowMajor;

using GemmTile = cute::Shape<cute::_128, cute::_64, cute::_128>;
using GemmCluster = cute::Shape<cute::_1, cute::_1, cute::_1>;
using GemmShapes = gemm::GroupProblemShape<GroupShape>;

// Both operands lie along k; 128 codes is what the copies of FP4 codes align to. Results lie along
// the rows.
using Epilogue = epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm100, cutlass::arch::OpClassBlockScaledTensorOp, GemmTile, GemmCluster,
    epilogue::collective::EpilogueTileAuto, float, float, void, ColumnMajor*, 4, float,
    ColumnMajor*, 4, epilogue::PtrArrayTmaWarpSpecialized1Sm>::CollectiveOp;
using Mainloop = gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm100, cutlass::arch::OpClassBlockScaledTensorOp,
    cutlass::mx_float4_t<cutlass::float_e2m1_t>, RowMajor*, 128,
    cutlass::mx_float8_t<cutlass::float_e4m3_t>, ColumnMajor*, 16, float, GemmTile, GemmCluster,
    gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(Epilogue::SharedStorage))>,
    gemm::KernelPtrArrayTmaWarpSpecialized1SmMxf8f6f4Sm100>::CollectiveOp;
using Kernel = gemm::kernel::GemmUniversal<GemmShapes, Mainloop, Epilogue>;
using Gemm = gemm::device::GemmUniversalAdapter<Kernel>;

// What block_scaled_groups.h lists is what CUTLASS reads.
static_assert(std::is_same_v<ScaleConfig, Mainloop::Sm1xxBlkScaledConfig> &&
              std::is_same_v<ScaleConfig::LayoutSF, Mainloop::InternalLayoutSFA> &&
              std::is_same_v<ScaleConfig::LayoutSF, Mainloop::InternalLayoutSFB>);
static_assert(std::is_same_v<AlongK, Kernel::InternalStrideA> &&
              std::is_same_v<AlongK, Kernel::InternalStrideB> &&
              std::is_same_v<AlongRows, Kernel::InternalStrideD>);
static_assert(std::is_same_v<cutlass::float_e2m1_t, Mainloop::ArrayElementA> &&
              std::is_same_v<cutlass::float_e4m3_t, Mainloop::ArrayElementB> &&
              std::is_same_v<cutlass::float_ue8m0_t, Kernel::ElementSF>);

struct ListGroupsParams {
  BlockScaledGemm gemm;
  Groups groups;
};

__global__ void __launch_bounds__(128)
    list_groups_kernel(const __grid_constant__ ListGroupsParams params) {
  const uint32_t first = blockIdx.x * blockDim.x + threadIdx.x;
  for (uint32_t i = first; i < params.gemm.num_experts; i += gridDim.x * blockDim.x)
    list_group(params.gemm, params.groups, i);
}

Gemm::Arguments arguments_of(const BlockScaledGemm& p, const Groups& groups,
                             const cutlass::KernelHardwareInfo& hardware) {
  Gemm::Arguments arguments{};
  arguments.mode = gemm::GemmUniversalMode::kGrouped;
  arguments.problem_shape = {static_cast<int>(p.num_experts), groups.shapes, nullptr};
  arguments.mainloop = {groups.weights,       groups.weight_strides,
                        groups.codes,         groups.code_strides,
                        groups.weight_scales, groups.weight_scale_layouts,
                        groups.scales,        groups.scale_layouts};
  arguments.epilogue = {{}, nullptr, nullptr, groups.out, groups.out_strides};
  arguments.epilogue.thread.alpha = 1.0f;
  arguments.epilogue.thread.beta = 0.0f;
  arguments.hw_info = hardware;
  return arguments;
}

void check_status(cutlass::Status status, const char* step, const KernelCall& call) {
  MIMO_RT_CUDA_CALL(cudaGetLastError(), call);
  MIMO_RT_CHECK(status == cutlass::Status::kSuccess, device_lost, call.where, "CUTLASS, ", step,
                " failed: ", cutlass::cutlassGetStatusString(status), " (", call.shapes, ")");
}

}  // namespace

void check_block_scaled(const char* where) {
  const KernelCall call{where, "device"};
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, call);
  const int minor = device_attribute(cudaDevAttrComputeCapabilityMinor, call);
  MIMO_RT_CHECK(major == 10 && minor == 0, unavailable, where,
                "device: expected compute capability 10.0, got ", major, '.', minor);
}

void launch_block_scaled_gemm(const BlockScaledGemm& p, const LaunchOptions& options,
                              const char* where, const std::string& shapes) {
  const KernelCall call{where, shapes};
  check_block_scaled(where);
  Groups groups;
  const uint64_t needed = place_groups(p, groups);
  MIMO_RT_CHECK(needed <= block_scaled_workspace_bytes(p.num_experts), internal, where,
                "workspace: expected at most ", block_scaled_workspace_bytes(p.num_experts),
                " bytes with the groups, got ", needed);
  cutlass::KernelHardwareInfo hardware;
  MIMO_RT_CUDA_CALL(cudaGetDevice(&hardware.device_id), call);
  hardware.sm_count = device_attribute(cudaDevAttrMultiProcessorCount, call);
  if (options.num_blocks != 0 && options.num_blocks < static_cast<uint32_t>(hardware.sm_count))
    hardware.sm_count = static_cast<int>(options.num_blocks);
  const Gemm::Arguments arguments = arguments_of(p, groups, hardware);
  const uint64_t descriptors = Gemm::get_workspace_size(arguments);
  MIMO_RT_CHECK(descriptors <= kDescriptorBytes, internal, where, "workspace: expected at most ",
                kDescriptorBytes, " bytes of descriptors, got ", descriptors, " for ",
                hardware.sm_count, " multiprocessors");
  check_status(Gemm::can_implement(arguments), "can_implement", call);
  launch_kernel(list_groups_kernel, ListGroupsParams{p, groups}, 4, 128, 0, options.stream, call);
  Gemm gemm;
  check_status(gemm.initialize(arguments, p.workspace, options.stream), "initialize", call);
  check_status(gemm.run(options.stream), "run", call);
}

}  // namespace mimo_rt::cuda
