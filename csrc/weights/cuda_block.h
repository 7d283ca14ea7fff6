// A block of memory packed for the CUDA kernels, to be copied to a GPU as it is: first parts are given
// their places, then all are packed in parallel, unit by unit. Parts of random weights may repeat their
// first units; the GPU makes those copies, so that the host holds and packs a fraction of the block.
#pragma once

#include <mimo_rt/checkpoint.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "weights/arena.h"
#include "weights/pack_cuda_dense.h"
#include "weights/weights.h"

namespace mimo_rt {

/// Offsets are bytes from the start of the block, multiples of 256.
struct CudaDenseMatrix {
  uint64_t offset = 0;
  CudaDenseShape shape;
};

/// Rows as the checkpoint stores them.
struct CudaTable {
  uint64_t offset = 0;
  DType dtype = DType::bf16;  ///< bf16, or f32
  uint32_t rows = 0, k = 0;
};

/// How a block is packed.
struct CudaPackOptions {
  uint32_t num_threads = 0;   ///< 0: num_usable_cores()
  ProgressCallback progress;  ///< may be empty
  /// Told the block's size before anything is packed; throws where it has no room. May be empty.
  std::function<void(uint64_t num_bytes)> check_room = {};
  bool only_lays_out = false;  ///< packs nothing: the image has its size and no bytes
};

/// What a block is made of. Without parts that repeat, `packed` is the block.
struct CudaBlockImage {
  struct Piece {
    uint64_t to = 0, from = 0, num_bytes = 0;  ///< `to`: in the block
  };
  uint64_t num_bytes = 0;      ///< of the block
  Arena packed;
  std::vector<Piece> uploads;  ///< `from`: in `packed`
  std::vector<Piece> copies;   ///< `from`: in the block, where earlier pieces have been
};

/// Parts refer to what they are packed from: the checkpoint must outlive `pack`.
class CudaBlock {
 public:
  using PackUnit = std::function<void(uint64_t unit, uint8_t* out)>;

  /// `where`: the public operation, for errors.
  explicit CudaBlock(const char* where) : where_(where) {}

  /// Equal units, one behind the other. Returns the offset. Units from `num_packed` on repeat the first ones.
  /// @throws Error{unsupported_shape} when the block becomes too large
  uint64_t add(uint64_t num_units, uint64_t unit_bytes, PackUnit pack, uint64_t num_packed = ~uint64_t{0});
  /// @throws as cuda_dense_shape
  CudaDenseMatrix add_dense(PackJob job, ColumnSlice columns);
  /// @throws Error{unsupported_shape} unless BF16 or F32
  CudaTable add_table(const MatrixSource& source);
  /// Elements [first, first + count) of a vector, as floats.
  uint64_t add_floats(const TensorInfo& tensor, uint32_t first, uint32_t count);
  /// A copy of `values`.
  template <typename T>
  uint64_t add_values(std::span<const T> values) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
    return add_bytes({bytes, bytes + values.size_bytes()});
  }

  /// @throws Error{out_of_memory, cancelled, bad_format}, and what check_room throws
  CudaBlockImage pack(const CudaPackOptions& options) const;

 private:
  struct Part {
    uint64_t offset, packed_offset, num_units, num_packed, unit_bytes;
    PackUnit pack;

    uint64_t packed_bytes() const { return num_packed * unit_bytes; }
  };
  void pack_parts(const CudaPackOptions& options, uint8_t* packed) const;
  uint64_t add_bytes(std::vector<uint8_t> bytes);

  const char* const where_;
  std::vector<Part> parts_;
  uint64_t bytes_ = 0, packed_bytes_ = 0;
};

}  // namespace mimo_rt
