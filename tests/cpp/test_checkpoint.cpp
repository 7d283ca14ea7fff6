// The safetensors reader against one hostile file per check of the format, next to a good twin.
#include <mimo_rt/checkpoint.h>

#include "check.h"
#include "safetensors_writer.h"

#include <sys/stat.h>

#include <algorithm>

namespace {

namespace fs = std::filesystem;
using mimo_rt::Checkpoint;
using mimo_rt::Error;
using mimo_rt::ErrorCode;
using writer::entry;
using writer::make_file;
using writer::TempDir;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

const std::string kData8(8, '\x01');

std::string one(const std::string& fields) { return "{\"a\":{" + fields + "}}"; }

/// A file that must be refused: the number of the check, the bytes, part of the message.
struct Hostile {
  int check_number;
  const char* what;
  std::string bytes;
  const char* needle;
};

// The good twin: what every hostile header below differs from in one point.
const std::string kGoodHeader = "{" + entry("a", "U8", "[8]", "[0,8]") + "}";

std::vector<Hostile> hostile_headers() {
  const auto file = [](const std::string& json) { return make_file(json, kData8); };
  const auto fields = [&](const std::string& text) { return file(one(text)); };
  const std::string length_only(8, '\0');
  std::string deep_rank = "[8";
  for (int i = 0; i < 8; ++i) deep_rank += ",1";
  std::string empties = "{";
  for (int i = 0; i < 5000; ++i)
    empties += (i ? "," : "") + entry("t" + std::to_string(i), "U8", "[0]", "[0,0]");
  return {
      {1, "file of 7 bytes", std::string(7, '\0'), "expected at least 8 bytes, got 7"},
      {2, "header longer than the file", std::string("\x40\0\0\0\0\0\0\0{}", 10), "got 64"},
      {2, "header length 2^63", std::string("\0\0\0\0\0\0\0\x80{}", 10), "9223372036854775808"},
      {3, "header length 0", length_only + "{}", "got 0"},
      {3, "header length 1", make_file("{", ""), "got 1"},
      {3, "leading space", file(" " + kGoodHeader), "begins with '{'"},
      {3, "a list", file("[]"), "begins with '{'"},
      {4, "byte order mark", file("\xef\xbb\xbf" + kGoodHeader), "begins with '{'"},
      {4, "bad UTF-8", file("{" + entry("\xc3", "U8", "[8]", "[0,8]") + "}"), "UTF-8"},
      {4, "overlong UTF-8", file("{" + entry("\xc0\xaf", "U8", "[8]", "[0,8]") + "}"), "UTF-8"},
      {4, "UTF-8 surrogate", file("{" + entry("\xed\xa0\x80", "U8", "[8]", "[0,8]") + "}"),
       "UTF-8"},
      {4, "lone surrogate", file("{" + entry("\\ud800", "U8", "[8]", "[0,8]") + "}"), "surrogate"},
      {4, "raw control character", file("{" + entry("a\n", "U8", "[8]", "[0,8]") + "}"), "control"},
      {5, "nesting", fields("\"dtype\":\"U8\",\"shape\":[[8]],\"data_offsets\":[0,8]"), "integer"},
      {5, "nested metadata", file("{\"__metadata__\":{\"a\":{}}," + kGoodHeader.substr(1)),
       "string"},
      {6, "name twice", file("{" + entry("a", "U8", "[8]", "[0,8]") + "," +
                             entry("\\u0061", "U8", "[0]", "[8,8]") + "}"), "once"},
      {6, "field twice", fields("\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[8],"
                                "\"data_offsets\":[0,8]"), "dtype once"},
      {6, "metadata twice", file("{\"__metadata__\":{},\"__metadata__\":{}," +
                                 kGoodHeader.substr(1)), "__metadata__"},
      {6, "metadata key twice", file("{\"__metadata__\":{\"k\":\"1\",\"k\":\"1\"}," +
                                     kGoodHeader.substr(1)), "each key once"},
      {7, "unknown field", fields("\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8],"
                                  "\"x\":1"), "'x'"},
      {7, "no shape", fields("\"dtype\":\"U8\",\"data_offsets\":[0,8]"), "expected shape"},
      {7, "no offsets", fields("\"dtype\":\"U8\",\"shape\":[8]"), "expected data_offsets"},
      {7, "empty entry", fields(""), "a string"},
      {8, "unknown dtype", file("{" + entry("a", "Q8", "[8]", "[0,8]") + "}"), "'Q8'"},
      {8, "lower case dtype", file("{" + entry("a", "u8", "[8]", "[0,8]") + "}"), "'u8'"},
      {9, "rank 9", file("{" + entry("a", "U8", deep_rank + "]", "[0,8]") + "}"), "8 dimensions"},
      {10, "negative", file("{" + entry("a", "U8", "[-8]", "[0,8]") + "}"), "integer"},
      {10, "float", file("{" + entry("a", "U8", "[8.0]", "[0,8]") + "}"), "integer literal"},
      {10, "exponent", file("{" + entry("a", "U8", "[8e0]", "[0,8]") + "}"), "integer literal"},
      {10, "leading zero", file("{" + entry("a", "U8", "[08]", "[0,8]") + "}"), "integer literal"},
      {10, "2^48", file("{" + entry("a", "U8", "[281474976710656]", "[0,8]") + "}"), "at most"},
      {10, "2^64", file("{" + entry("a", "U8", "[18446744073709551616]", "[0,8]") + "}"),
       "at most"},
      {11, "product 2^64", file("{" + entry("a", "U8", "[4294967296,4294967296]", "[0,8]") + "}"),
       "2^64 elements"},
      {11, "overflow behind a zero", file("{" + entry("a", "U8", "[0,4294967296,4294967296]",
                                                      "[0,0]") + "}"), "2^64 elements"},
      {11, "overflow before a zero", file("{" + entry("a", "U8", "[4294967296,4294967296,0]",
                                                      "[0,0]") + "}"), "2^64 elements"},
      {12, "bits overflow", file("{" + entry("a", "F64", "[4294967296,134217728]", "[0,8]") + "}"),
       "2^64 bits"},
      {12, "odd F4", file("{" + entry("a", "F4", "[15]", "[0,8]") + "}"), "whole bytes"},
      {13, "end before begin", file("{" + entry("a", "U8", "[8]", "[8,0]") + "}"), "[8, 0]"},
      {13, "size mismatch", file("{" + entry("a", "U8", "[7]", "[0,8]") + "}"), "7 bytes"},
      {13, "three offsets", file("{" + entry("a", "U8", "[8]", "[0,8,8]") + "}"), "']'"},
      {13, "offsets at 2^63", file("{" + entry("a", "U8", "[0]",
           "[9223372036854775808,9223372036854775808]") + "}"), "at most"},
      {14, "hole", file("{" + entry("a", "U8", "[3]", "[0,3]") + "," +
                        entry("b", "U8", "[4]", "[4,8]") + "}"), "no hole"},
      {14, "overlap", file("{" + entry("a", "U8", "[5]", "[0,5]") + "," +
                           entry("b", "U8", "[4]", "[4,8]") + "}"), "no overlap"},
      {14, "same range twice", file("{" + entry("a", "U8", "[8]", "[0,8]") + "," +
                                    entry("b", "U8", "[8]", "[0,8]") + "}"), "no overlap"},
      {14, "first not at 0", file("{" + entry("a", "U8", "[7]", "[1,8]") + "}"), "at byte 0"},
      {14, "truncated data", make_file(kGoodHeader, kData8.substr(1)), "truncated"},
      {14, "trailing data", make_file(kGoodHeader, kData8 + "x"), "expected 8 bytes"},
      {15, "5000 empty tensors", make_file(empties + "}", ""), "4096 empty"},
      {15, "empty tensor inside another", file("{" + entry("a", "U8", "[8]", "[0,8]") + "," +
                                               entry("b", "U8", "[0]", "[4,4]") + "}"), "at byte"},
      {16, "empty name", file("{" + entry("", "U8", "[8]", "[0,8]") + "}"), "got 0"},
      {16, "name with NUL", file("{" + entry("a\\u0000b", "U8", "[8]", "[0,8]") + "}"), "control"},
      {16, "name of 4097 bytes", file("{" + entry(std::string(4097, 'n'), "U8", "[8]", "[0,8]") +
                                      "}"), "4097"},
      {17, "metadata number", file("{\"__metadata__\":{\"a\":1}," + kGoodHeader.substr(1)),
       "string"},
      {17, "metadata list", file("{\"__metadata__\":[]," + kGoodHeader.substr(1)), "'{'"},
      {18, "newline padding", file(kGoodHeader + "\n"), "nothing but spaces"},
      {18, "second document", file(kGoodHeader + "{}"), "nothing but spaces"},
      {18, "NUL padding", file(kGoodHeader + std::string(1, '\0')), "nothing but spaces"},
      {5, "unfinished", file("{\"a\":{\"dtype\":\"U8"), "end of a string"},
  };
}

void write_index(const TempDir& dir, const std::string& map, const std::string& extra = "") {
  dir.write(kIndex, "{" + extra + "\"weight_map\":{" + map + "}}");
}

// Two shards with one tensor each, and their index.
void write_two_shards(const TempDir& dir) {
  dir.write("s1.safetensors", make_file({{"a", "U8", {8}, kData8}}));
  dir.write("s2.safetensors", make_file({{"b", "U8", {8}, kData8}}));
  write_index(dir, "\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"",
              "\"metadata\":{\"total_size\":16,\"x\":[1,{\"y\":null}]},");
}

}  // namespace

TEST_CASE("every hostile header is refused and its twin is read") {
  const std::vector<Hostile> files = hostile_headers();
  for (int number = 1; number <= 18; ++number)
    CHECK(std::any_of(files.begin(), files.end(),
                      [&](const Hostile& file) { return file.check_number == number; }));
  for (const Hostile& file : files) {
    const TempDir dir;
    dir.write(kSingle, file.bytes);
    const int before = check::failures();
    CHECK_THROWS(bad_format, file.needle, Checkpoint::open(dir.path()));
    CHECK_THROWS(bad_format, "model.safetensors", Checkpoint::open(dir.path()));
    if (check::failures() != before)
      std::fprintf(stderr, "  in check %d: %s\n", file.check_number, file.what);
  }
  const TempDir dir;
  dir.write(kSingle, make_file(kGoodHeader, kData8));
  CHECK_EQ(Checkpoint::open(dir.path()).tensors().size(), size_t{1});
}

TEST_CASE("valid files are read") {
  const TempDir dir;
  std::string data = kData8;
  data[3] = '\x7f';
  dir.write(kSingle, make_file({{"w", "BF16", {2, 2}, data},
                                {"f4", "F4", {1, 16}, data},
                                {"scale", "F8_E8M0", {8}, data},
                                {"q", "F8_E4M3", {8}, data},
                                {"none", "F32", {0, 281474976710655}, ""},
                                {"scalar", "I64", {}, data},
                                {"\xc3\xa9\\ud83d\\ude00../../etc/x", "U8", {8}, data}}));
  for (const bool use_mmap : {true, false}) {
    Checkpoint::Options options;
    options.use_mmap = use_mmap;
    const Checkpoint checkpoint = Checkpoint::open(dir.path(), options);
    CHECK_EQ(checkpoint.tensors().size(), size_t{7});
    CHECK(checkpoint.find("\xc3\xa9\xf0\x9f\x98\x80../../etc/x") != nullptr);
    CHECK(checkpoint.find("absent") == nullptr);
    const mimo_rt::TensorInfo& tensor = checkpoint.at("w");
    CHECK(tensor.dtype == mimo_rt::DType::bf16);
    CHECK(tensor.shape == (std::vector<uint64_t>{2, 2}));
    CHECK_EQ(std::memcmp(tensor.data.data(), data.data(), 8), 0);
    CHECK_EQ(checkpoint.at("none").data.size(), size_t{0});
    CHECK_EQ(checkpoint.at("scalar").data.size(), size_t{8});
    checkpoint.release_pages(tensor);
    CHECK_EQ(std::memcmp(tensor.data.data(), data.data(), 8), 0);
    CHECK_THROWS(missing_tensor, "'scale'", checkpoint.at("scales"));
  }
}

TEST_CASE("check 2: the header limit can be lowered") {
  const TempDir dir;
  dir.write(kSingle, make_file(kGoodHeader, kData8));
  Checkpoint::Options options;
  options.max_header_bytes = kGoodHeader.size();
  CHECK_EQ(Checkpoint::open(dir.path(), options).tensors().size(), size_t{1});
  --options.max_header_bytes;
  CHECK_THROWS(bad_format, "max_header_bytes", Checkpoint::open(dir.path(), options));
}

TEST_CASE("check 1: only regular files of a directory are read") {
  const TempDir dir;
  CHECK_THROWS(io, "found neither", Checkpoint::open(dir.path()));
  CHECK_THROWS(io, "expected a directory", Checkpoint::open(dir.path() / "absent"));
  fs::create_directory(dir.path() / kSingle);
  CHECK_THROWS(bad_format, "regular file", Checkpoint::open(dir.path()));
  CHECK_THROWS(io, "expected a directory", Checkpoint::open("/dev/null"));
  fs::remove(dir.path() / kSingle);
  CHECK_EQ(::mkfifo((dir.path() / kSingle).c_str(), 0600), 0);
  CHECK_THROWS(bad_format, "regular file", Checkpoint::open(dir.path()));  // and does not wait
}

TEST_CASE("check 19: unaligned data is read as it is") {
  const TempDir dir;
  for (size_t pad = 0; pad < 8; ++pad) {
    const std::string json = "{" + entry("a", "F32", "[2]", "[0,8]") + "}" + std::string(pad, ' ');
    dir.write(kSingle, make_file(json, kData8));
    const Checkpoint checkpoint = Checkpoint::open(dir.path());
    CHECK_EQ(std::memcmp(checkpoint.at("a").data.data(), kData8.data(), 8), 0);
  }
}

TEST_CASE("check 20: a file read into memory survives its truncation") {
  const TempDir dir;
  dir.write(kSingle, make_file(kGoodHeader, kData8));
  Checkpoint::Options options;
  options.use_mmap = false;
  const Checkpoint checkpoint = Checkpoint::open(dir.path(), options);
  fs::resize_file(dir.path() / kSingle, 0);
  CHECK_EQ(std::memcmp(checkpoint.at("a").data.data(), kData8.data(), 8), 0);
  CHECK_THROWS(bad_format, "got 0", Checkpoint::open(dir.path()));
}

TEST_CASE("check 21: an index and its shards must agree") {
  const TempDir dir;
  write_two_shards(dir);
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  CHECK_EQ(checkpoint.tensors().size(), size_t{2});
  CHECK_EQ(checkpoint.at("b").file_name, std::string("s2.safetensors"));

  const std::string a = "\"a\":\"s1.safetensors\"", b = "\"b\":\"s2.safetensors\"";
  const auto refused = [&](const std::string& map, ErrorCode code, const char* needle) {
    write_index(dir, map);
    check::throws(__FILE__, __LINE__, code, needle, [&] { Checkpoint::open(dir.path()); });
  };
  refused("", ErrorCode::bad_format, "weight_map");
  refused(a + ",\"b\":\"absent.safetensors\"", ErrorCode::io, "absent.safetensors");
  refused(a + "," + b + ",\"c\":\"s2.safetensors\"", ErrorCode::missing_tensor, "'c'");
  refused(a + ",\"b\":\"s1.safetensors\"", ErrorCode::missing_tensor, "'b'");
  refused("\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"", ErrorCode::bad_format,
          "found it in");
  refused(a + "," + a + "," + b, ErrorCode::bad_format, "twice");
  refused(a + ",\"b\":3", ErrorCode::bad_format, "a string");
  for (const char* name : {"../s2.safetensors", "/etc/passwd", "x/s2.safetensors", "..", ".", "",
                           "x\\\\s2", "s2.safetensors\\u0000", "s2\\n", "a..b"})
    refused(a + ",\"b\":\"" + name + "\"", ErrorCode::bad_format, "plain file name");

  dir.write("s2.safetensors", make_file({{"a", "U8", {8}, kData8}, {"b", "U8", {8}, kData8}}));
  refused(a + "," + b, ErrorCode::bad_format, "in one shard");
  dir.write("s2.safetensors", make_file({{"b", "U8", {8}, kData8}, {"c", "U8", {8}, kData8}}));
  refused(a + "," + b, ErrorCode::bad_format, "'c'");
}

TEST_CASE("check 21: a hostile index is refused") {
  const TempDir dir;
  write_two_shards(dir);
  const std::string map = "\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}";
  const auto refused = [&](const std::string& text, const char* needle) {
    dir.write(kIndex, text);
    CHECK_THROWS(bad_format, needle, Checkpoint::open(dir.path()));
  };
  refused("", "expected '{'");
  refused("[]", "expected '{'");
  refused("{" + map, "'}'");
  refused("{" + map + "}x", "the end");
  refused("{" + map + "," + map + "}", "twice");
  refused("{\"metadata\":" + std::string(100000, '[') + "}", "less nesting");
  refused("{\"metadata\":{\"a\":[{\"b\":[{}]}]}," + map + "}", "less nesting");
  refused("{\"metadata\":{\"a\":}," + map + "}", "JSON value");
  refused("{\"metadata\":{\"a\":tru}," + map + "}", "JSON value");
  for (const char* number : {"1-2..e", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "1.e2",
                             "--1", "1e5.0", "0x1", "1-", "00", "1true", "NaN", "Infinity", "E1"})
    refused("{\"metadata\":{\"a\":" + std::string(number) + "}," + map + "}", "JSON value");
  refused("{\"metadata\":{\"a\":1,\"b\":2,\"a\":3}," + map + "}", "second 'a'");
  refused("{\"metadata\":{\"a\":1,\"\\u0061\":3}," + map + "}", "second 'a'");
  refused("{\"metadata\":[{},{\"c\":{\"d\":[],\"d\":{}}}]," + map + "}", "second 'd'");
  refused("{\"weight_map\":[]}", "'{'");
  refused("{\"metadata\":{}}", "weight_map");
  dir.write(kIndex, "{\"metadata\":{\"a\":[-1.5e3,true,null,\"x\",{}]}," + map + " } \n");
  CHECK_EQ(Checkpoint::open(dir.path()).tensors().size(), size_t{2});
  // The twins: every form of a number, and equal keys of different objects.
  dir.write(kIndex, "{\"metadata\":{\"a\":[0,-0,10,0.5,-0.05,1E5,1e+5,2.5e-07,0e0],"
                    "\"b\":{\"a\":{\"a\":1},\"b\":2},\"c\":{\"a\":3}}," + map + "}");
  CHECK_EQ(Checkpoint::open(dir.path()).tensors().size(), size_t{2});
}

TEST_CASE("symlinks may not leave the directory") {
  const TempDir dir;
  const std::string file = make_file(kGoodHeader, kData8);
  const auto link_to = [&](const char* target, const std::string& folder) {
    fs::create_directories(dir.path() / folder);
    fs::remove(dir.path() / folder / kSingle);
    fs::create_symlink(target, dir.path() / folder / kSingle);
    return dir.path() / folder;
  };
  dir.write("outside", file);
  dir.write("model/inside", file);
  CHECK_EQ(Checkpoint::open(link_to("inside", "model")).tensors().size(), size_t{1});
  CHECK_THROWS(bad_format, "symlink", Checkpoint::open(link_to("../outside", "model")));
  CHECK_THROWS(bad_format, "symlink", Checkpoint::open(link_to("/etc/passwd", "model")));
  CHECK_THROWS(bad_format, "symlink", Checkpoint::open(link_to("/dev/zero", "model")));
  CHECK_THROWS(io, "symlink", Checkpoint::open(link_to("absent", "model")));
  CHECK_THROWS(io, "symlink", Checkpoint::open(link_to(kSingle, "model")));  // a loop

  // The layout of a hub cache: <repo>/snapshots/<revision>/[draft/] and <repo>/blobs.
  dir.write("repo/blobs/hash", file);
  dir.write("repo/blobs2/hash", file);
  const std::string snapshot = "repo/snapshots/rev";
  CHECK_EQ(Checkpoint::open(link_to("../../blobs/hash", snapshot)).tensors().size(), size_t{1});
  CHECK_EQ(Checkpoint::open(link_to("../../../blobs/hash", snapshot + "/draft")).tensors().size(),
           size_t{1});
  CHECK_THROWS(bad_format, "symlink", Checkpoint::open(link_to("../../blobs2/hash", snapshot)));
  CHECK_THROWS(bad_format, "symlink", Checkpoint::open(link_to("../../blobs/hash", "repo/a/b")));

  // The directory itself may be reached through a link.
  fs::create_directory_symlink(dir.path() / "model", dir.path() / "alias");
  link_to("inside", "model");
  CHECK_EQ(Checkpoint::open(dir.path() / "alias").tensors().size(), size_t{1});
}

CHECK_MAIN()
