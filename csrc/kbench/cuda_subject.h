// What the subjects on a GPU share: calls that walk through places, rows on the device, and the
// comparison of results with what they should be.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "core/numeric.h"
#include "cuda/bench_device.h"
#include "kbench/random_rows.h"
#include "kbench/subject.h"

namespace mimo_rt::kbench {

// Arithmetic of the kernels. Tensor cores truncate where FP32 rounds.
inline constexpr double kProductSumUnit = 0x1p-23, kF32Unit = 0x1p-24, kBf16Unit = 0x1p-8;

/// An element of a result, exactly, and the error that it may have.
struct Bounded {
  double value = 0, bound = 0;
};

/// A *place* is one of several data sets, so that a call finds nothing of the one before it.
class CudaSubject : public Subject {
 public:
  double worst_error() override {
    const cuda::PlaceChecks places(*device_);
    const double first = worst_error_at(0);
    return num_places_ == 1 ? first : std::max(first, worst_error_at(num_places_ - 1));
  }
  KernelTimes run(uint32_t num_calls) override {
    return device_->time(num_calls, [this](uint32_t) { call(next_++ % num_places_); });
  }

 protected:
  CudaSubject(const KernelCase& kernel_case, std::unique_ptr<cuda::BenchDevice> device)
      : Subject(kernel_case), device_(std::move(device)) {
    work_.read_bytes = static_cast<double>(device_->read_bytes());
  }

  virtual void call(uint32_t place) = 0;
  virtual double worst_error_at(uint32_t place) = 0;

  template <typename T>
  T* upload(const std::vector<T>& data) {
    T* memory = static_cast<T*>(device_->allocate(data.size() * sizeof(T)));
    device_->upload(memory, data.data(), data.size() * sizeof(T));
    return memory;
  }
  /// As many copies of `data` as the rotation takes, each a place.
  template <typename T>
  void upload_places(const std::vector<T>& data, const KernelBenchOptions& options) {
    constexpr uint64_t kMaxPlaces = 512;  // the plain read between the calls empties the cache too
    const uint64_t num_bytes = data.size() * sizeof(T);
    place_bytes_ = (num_bytes + 255) / 256 * 256;
    num_places_ = static_cast<uint32_t>(
        std::clamp<uint64_t>(cuda_rotation_bytes(options) / place_bytes_, 1, kMaxPlaces));
    places_ = static_cast<uint8_t*>(device_->allocate(num_places_ * place_bytes_));
    device_->upload(places_, data.data(), num_bytes);
    for (uint32_t i = 1; i < num_places_; ++i)
      device_->copy(places_ + i * place_bytes_, places_, num_bytes);
  }
  uint8_t* place(uint32_t i) const { return places_ + i * place_bytes_; }

  static uint64_t cuda_rotation_bytes(const KernelBenchOptions& options) {
    return options.rotation_bytes ? options.rotation_bytes : uint64_t{256} << 20;
  }

  std::unique_ptr<cuda::BenchDevice> device_;
  uint32_t num_places_ = 1;

 private:
  uint8_t* places_ = nullptr;
  uint64_t place_bytes_ = 0;
  uint32_t next_ = 0;
};

/// A kernel whose result is rows of T, FP32 or BF16 (uint16_t).
template <typename Params, typename T>
class RowsSubject : public CudaSubject {
 protected:
  using CudaSubject::CudaSubject;

  /// Rows for the result. @return them
  cuda::RowsView<T> make_out(uint32_t num_rows, uint32_t num_columns) {
    num_rows_ = num_rows;
    num_columns_ = num_columns;
    stride_ = (num_columns + 7) / 8 * 8;
    out_.resize(uint64_t{num_rows} * stride_);
    device_out_ = static_cast<T*>(device_->allocate(out_.size() * sizeof(T)));
    return {device_out_, stride_};
  }
  /// Makes `params_` those of a place.
  virtual void aim(uint32_t place) = 0;
  virtual Bounded expected(uint32_t place, uint32_t row, uint32_t column) = 0;
  /// What the rows hold before a call: NaN, for every element must be written.
  virtual void fill(std::vector<T>& out) {
    constexpr T kNan = std::is_same_v<T, float> ? std::numeric_limits<T>::quiet_NaN() : T(0x7fc1);
    std::fill(out.begin(), out.end(), kNan);
  }

  void call(uint32_t place) override {
    aim(place);
    device_->launch(params_);
  }

  /// Every element must have been written; a sample of them is compared.
  double worst_error_at(uint32_t place) override {
    constexpr uint32_t kCheckedRows = 8, kCheckedColumns = 64;
    fill(out_);
    device_->upload(device_out_, out_.data(), out_.size() * sizeof(T));
    call(place);
    device_->download(out_.data(), device_out_, out_.size() * sizeof(T));
    for (uint32_t row = 0; row < num_rows_; ++row)
      for (uint32_t column = 0; column < num_columns_; ++column)
        if (std::isnan(element(row, column))) return std::numeric_limits<double>::infinity();
    double worst = 0, squared_errors = 0, squares = 0;
    for (const uint32_t row : spread_over(num_rows_, kCheckedRows))
      for (const uint32_t column : spread_over(num_columns_, kCheckedColumns)) {
        const Bounded exact = expected(place, row, column);
        const double error = element(row, column) - exact.value;
        worst = worst_of(worst, element(row, column), exact.value, exact.bound);
        squared_errors += error * error;
        squares += exact.value * exact.value;
      }
    this->relative_error_ = squares > 0 ? std::sqrt(squared_errors / squares) : 0.0;
    return worst;
  }
  /// Of the result that was compared last.
  double element(uint32_t row, uint32_t column) const {
    const T value = out_[uint64_t{row} * stride_ + column];
    if constexpr (std::is_same_v<T, float>) return double{value};
    else return double{bf16_to_f32(value)};
  }

  Params params_;

 private:
  uint32_t num_rows_ = 0, num_columns_ = 0, stride_ = 0;
  std::vector<T> out_;
  T* device_out_ = nullptr;
};

}  // namespace mimo_rt::kbench
