// Writes files as torch.save does, and ones that it never would: zip archives and pickles, byte by byte.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace writer {

inline std::string little_endian(uint64_t value, int num_bytes) {
  std::string out;
  for (int i = 0; i < num_bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
  return out;
}

/// What a test may get wrong about one entry.
struct ZipFault {
  uint16_t method = 0, flags = 0x0808;
  int size_change = 0;              ///< of both sizes in the directory
  int packed_size_change = 0;       ///< of the packed size alone
  std::string other_local_name = {};  ///< in front of the data; as long as the real one
  uint32_t offset_change = 0;
};

using ZipFiles = std::vector<std::pair<std::string, std::string>>;

/// An archive of stored entries, aligned to 64 bytes as torch does; `fault` is that of the last entry.
inline std::string make_zip(const ZipFiles& files, const ZipFault& fault = {}) {
  std::string out, directory;
  for (size_t i = 0; i < files.size(); ++i) {
    const auto& [name, data] = files[i];
    const ZipFault entry = i + 1 == files.size() ? fault : ZipFault{};
    const size_t offset = out.size();
    const size_t padding = (64 - (offset + 30 + name.size() + 4) % 64) % 64;
    const std::string rest = little_endian(entry.flags, 2) + little_endian(entry.method, 2) + std::string(8, '\0');
    const auto stored = data.size() + static_cast<size_t>(entry.size_change);
    out += "PK\x03\x04" + little_endian(0, 2) + rest + little_endian(0, 8) + little_endian(name.size(), 2) +
           little_endian(padding + 4, 2) + (entry.other_local_name.empty() ? name : entry.other_local_name) +
           "FB" + little_endian(padding, 2) + std::string(padding, 'Z') + data;
    directory += "PK\x01\x02" + little_endian(0, 4) + rest +
                 little_endian(stored + static_cast<size_t>(entry.packed_size_change), 4) + little_endian(stored, 4) +
                 little_endian(name.size(), 2) + std::string(12, '\0') +
                 little_endian(offset + entry.offset_change, 4) + name;
  }
  const size_t begin = out.size();
  return out + directory + "PK\x05\x06" + std::string(4, '\0') + little_endian(files.size(), 2) +
         little_endian(files.size(), 2) + little_endian(directory.size(), 4) + little_endian(begin, 4) +
         std::string(2, '\0');
}

// Pieces of a pickle of protocol 2.
inline std::string pickle_text(const std::string& text) { return "X" + little_endian(text.size(), 4) + text; }
inline std::string pickle_int(int64_t value) { return "J" + little_endian(static_cast<uint64_t>(value), 4); }
inline std::string pickle_global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}

/// The tensor of a torch.save, and what a test may change.
struct PickleTensor {
  std::string rebuild = pickle_global("torch._utils", "_rebuild_tensor_v2");
  std::string storage_type = pickle_global("torch", "BFloat16Storage");
  std::string key = "0";
  int64_t num_stored = 72, offset = 0;
  std::string sizes = pickle_int(72) + "\x85", strides = pickle_int(1) + "\x85";
  std::string tail = "\x89" + pickle_global("collections", "OrderedDict") + ")R";

  std::string storage() const {
    return "(" + pickle_text("storage") + storage_type + pickle_text(key) + pickle_text("cpu") +
           pickle_int(num_stored) + "tQ";
  }
  std::string text() const {
    return rebuild + "(" + storage() + pickle_int(offset) + sizes + strides + tail + "tR";
  }
};

/// `{key: value, …}` from the pickles of keys and values.
inline std::string make_pickle(const std::string& items) { return "\x80\x02}(" + items + "u."; }

inline std::string mask_items(int64_t id = 7, const PickleTensor& tensor = {}) {
  return pickle_text("mask_token_id") + pickle_int(id) + pickle_text("embedding") + tensor.text();
}

/// [72] BF16 values 0x3f00, 0x3f01, …
inline std::string mask_bytes(int count = 72) {
  std::string bytes;
  for (int i = 0; i < count; ++i) bytes += {static_cast<char>(i), '\x3f'};
  return bytes;
}

inline ZipFiles torch_files(const std::string& pickle, const std::string& data = mask_bytes()) {
  return {{"archive/data.pkl", pickle}, {"archive/byteorder", "little"}, {"archive/version", "3\n"},
          {"archive/data/0", data}};
}

inline std::string make_torch_file(const std::string& pickle, const std::string& data = mask_bytes()) {
  return make_zip(torch_files(pickle, data));
}

}  // namespace writer
