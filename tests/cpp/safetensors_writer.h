// Writes safetensors files, good and bad ones, and scratch directories for tests.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace writer {

struct Tensor {
  std::string name;
  std::string dtype;  ///< as in the file: "BF16"
  std::vector<uint64_t> shape;
  std::string data;
};

/// Length field + header text + tensor bytes, exactly as given.
inline std::string make_file(const std::string& json, const std::string& data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(uint64_t{json.size()} >> (8 * i) & 0xff);
  return out + json + data;
}

inline std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? "," : "") + std::to_string(shape[i]);
  return out + "]";
}

/// `"name":{...}` of a header.
inline std::string entry(const std::string& name, const std::string& dtype,
                         const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

/// A valid file; the header is padded with spaces so that the data is 8-byte aligned.
inline std::string make_file(const std::vector<Tensor>& tensors) {
  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}", data;
  for (const Tensor& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.data;
    json += "," + entry(tensor.name, tensor.dtype, shape_text(tensor.shape),
                        shape_text({begin, data.size()}));
  }
  json += "}";
  while (json.size() % 8 != 0) json += ' ';
  return make_file(json, data);
}

/// A directory that disappears with the object.
class TempDir {
 public:
  explicit TempDir(const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    std::string name = (parent / "mimo_rt_test.XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp failed");
    path_ = std::filesystem::canonical(name);
  }
  TempDir(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }
  void write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream out(path_ / name, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!out) throw std::runtime_error("cannot write " + name);
  }

 private:
  std::filesystem::path path_;
};

}  // namespace writer
