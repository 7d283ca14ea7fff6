#include <limits>

#include "kbench/cuda_subject.h"
#include "kbench/cuda_subjects.h"
#include "kbench/edge_case.h"

namespace mimo_rt::kbench {
namespace {

constexpr uint64_t kDeadlineNs = 1'000'000'000;

cuda::RelayEdge edge_of(const KernelCase& c) {
  if (c.kernel == "edge_same_worker") return cuda::RelayEdge::same_worker;
  if (c.kernel == "edge_tag") return cuda::RelayEdge::tag;
  return c.kernel == "edge_counter" ? cuda::RelayEdge::counter : cuda::RelayEdge::gather;
}

/// A token that blocks hand around; every call goes on where the last one ended.
class CudaEdges final : public CudaSubject {
 public:
  CudaEdges(const KernelCase& c, std::unique_ptr<cuda::BenchDevice> device)
      : CudaSubject(c, std::move(device)) {
    for (uint32_t i = 0; i < 2 * cuda::kRelayThreads; ++i) start_.push_back(1000 * (i % 32));
    params_.edge = edge_of(c);
    params_.num_hops = c.num_hops;
    params_.num_signallers = c.num_signallers;
    params_.token = upload(start_);
    std::vector<uint64_t> words(start_.begin(), start_.begin() + cuda::kRelayThreads);  // tag 0
    words.resize(start_.size());
    params_.words = upload(words);
    params_.counter = upload(std::vector<cuda::CounterCell>(1));
    params_.watchdog = {upload(std::vector<uint32_t>{cuda::kRunning}),
                        upload(std::vector<cuda::HangReport>(1)), kDeadlineNs};
    work_.num_hops = c.num_hops;
  }

  KernelTimes run(uint32_t num_calls) override {
    KernelTimes times = CudaSubject::run(num_calls);
    check_running();
    return times;
  }

 private:
  void call(uint32_t /*place*/) override {
    device_->launch(params_, measured_.num_workers);
    params_.first_hop += params_.num_hops;
  }

  /// Counts, so they are right or wrong. Values move by whole warps: 32 places apart they are equal.
  double worst_error_at(uint32_t place) override {
    call(place);
    check_running();
    const std::vector<uint32_t> token = download_token();
    const uint32_t begin = params_.first_hop % 2 * cuda::kRelayThreads;
    for (uint32_t i = begin; i < begin + cuda::kRelayThreads; ++i)
      if (token[i] != start_[i] + params_.first_hop) return std::numeric_limits<double>::infinity();
    return 0;
  }

  /// Both rows.
  std::vector<uint32_t> download_token() {
    std::vector<uint32_t> token(start_.size());
    if (params_.edge != cuda::RelayEdge::tag) {
      device_->download(token.data(), params_.token, token.size() * sizeof(uint32_t));
      return token;
    }
    std::vector<uint64_t> words(start_.size());
    device_->download(words.data(), params_.words, words.size() * sizeof(uint64_t));
    for (size_t i = 0; i < words.size(); ++i) token[i] = static_cast<uint32_t>(words[i]);  // the payload
    return token;
  }

  void check_running() {
    cuda::HangReport report{};
    device_->download(&report, params_.watchdog.report, sizeof report);
    MIMO_RT_CHECK(!report.is_written, timeout, "KernelBench.run", measured_.kernel, ": block ",
                  report.site.worker_idx, " waited a second at hop ", report.site.task_idx,
                  ": expected ", report.expected, ", saw ", report.seen);
  }

  std::vector<uint32_t> start_;  // [2, kRelayThreads]
  cuda::EdgeRelayParams params_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_edges(const KernelCase& kernel_case,
                                         const KernelBenchOptions& /*options*/,
                                         std::unique_ptr<cuda::BenchDevice> device) {
  const KernelCase c = complete_edge_case(kernel_case, device->num_multiprocessors());
  return std::make_unique<CudaEdges>(c, std::move(device));
}

}  // namespace mimo_rt::kbench
