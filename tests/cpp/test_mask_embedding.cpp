// mask_embedding.pt: a file of torch itself, views, and one hostile file per rule. Nothing of the pickle
// may run: every opcode beyond the known shape is refused.
#include "checkpoint/mask_embedding.h"

#include "check.h"
#include "core/numeric.h"
#include "draft_fixture.h"
#include "torch_file_writer.h"
#include "weights/draft_weights.h"

#include <fstream>
#include <iterator>

namespace {

using namespace writer;
using mimo_rt::DType;
using mimo_rt::MaskEmbedding;

MaskEmbedding parse(const std::string& file) {
  return mimo_rt::parse_torch_mask_embedding(std::as_bytes(std::span(file)), "mask_embedding.pt");
}

MaskEmbedding parse_pickle(const std::string& pickle) { return parse(make_torch_file(pickle)); }

std::string bytes_of(const MaskEmbedding& mask) {
  return {reinterpret_cast<const char*>(mask.tensor.data.data()), mask.tensor.data.size()};
}

std::string golden() {
  std::ifstream in(std::filesystem::path(__FILE__).parent_path() / "../golden/mask_embedding.pt", std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

const char* const kAdvice = "Save it as mask_embedding.safetensors (tensor 'embedding') instead.";

}  // namespace

// torch 2.13: torch.save({"mask_token_id": 7, "embedding": (torch.arange(72) - 36).mul(0.25).bfloat16(),
//                         "per_position": False}, path)
TEST_CASE("a file that torch wrote is read") {
  const MaskEmbedding mask = parse(golden());
  CHECK_EQ(*mask.mask_token_id, 7);
  CHECK(mask.tensor.dtype == DType::bf16);
  CHECK(mask.tensor.shape == std::vector<uint64_t>{72});
  const fixture::DraftConfig config = fixture::small_draft();
  const TempDir dir;
  fixture::write_draft(dir, config);
  std::filesystem::remove(dir.path() / "mask_embedding.safetensors");
  dir.write("mask_embedding.pt", golden());
  const auto weights = mimo_rt::DraftWeights::load(dir.path(), config, {});
  for (int i = 0; i < 72; ++i)
    CHECK_EQ(mimo_rt::bf16_to_f32(weights.mask_embedding()[i]), static_cast<float>(i - 36) / 4);

  fixture::DraftConfig other = config;
  other.mask_token_id = 8;
  CHECK_THROWS(bad_format, "mask_token_id: expected the config's 8, got 7",
               mimo_rt::DraftWeights::load(dir.path(), other, {}));
  const PickleTensor shorter{.num_stored = 71, .sizes = pickle_int(71) + "\x85"};
  dir.write("mask_embedding.pt", make_torch_file(make_pickle(mask_items(7, shorter)), mask_bytes(71)));
  CHECK_THROWS(shape_mismatch, "expected [72] as the config's hidden_size, got [71]",
               mimo_rt::DraftWeights::load(dir.path(), config, {}));
  dir.write("mask_embedding.pt", "");
  CHECK_THROWS(bad_format, kAdvice, mimo_rt::DraftWeights::load(dir.path(), config, {}));
}

TEST_CASE("the writer's own file is read, with its offset and stride") {
  CHECK(bytes_of(parse_pickle(make_pickle(mask_items()))) == mask_bytes());
  const PickleTensor view{
      .num_stored = 72, .offset = 3, .sizes = pickle_int(10) + "\x85", .strides = pickle_int(7) + "\x85"};
  const std::string got = bytes_of(parse_pickle(make_pickle(mask_items(7, view))));
  std::string expected;
  for (int i = 0; i < 10; ++i) expected += mask_bytes().substr(2 * (3 + 7 * i), 2);
  CHECK(got == expected);
  const PickleTensor f32{
      .storage_type = pickle_global("torch", "FloatStorage"), .num_stored = 36, .sizes = pickle_int(36) + "\x85"};
  CHECK(parse_pickle(make_pickle(mask_items(7, f32))).tensor.dtype == DType::f32);
  const PickleTensor f16{.storage_type = pickle_global("torch", "HalfStorage")};
  CHECK(parse_pickle(make_pickle(mask_items(7, f16))).tensor.dtype == DType::f16);
  const std::string no_per_position = pickle_text("per_position") + "\x89";
  parse_pickle(make_pickle(mask_items() + no_per_position));
  // SETITEM, memo, small integers, a tuple by mark
  parse_pickle("\x80\x02}q" + std::string(1, '\0') + pickle_text("mask_token_id") + "K\x07s" +
               pickle_text("embedding") + PickleTensor{.sizes = "(KHt", .strides = "(M\x01" + std::string(1, '\0') + "t"}.text() + "s.");
}

TEST_CASE("every opcode but the known ones is refused") {
  // What the reader knows; everything else of the 256 must fail by its number.
  const std::string known = std::string(".}(qrhjXKMJ)tsucQR") + "\x88\x89\x85";
  int num_refused = 0;
  for (int opcode = 0; opcode < 256; ++opcode) {
    if (known.find(static_cast<char>(opcode)) != std::string::npos) continue;
    char name[8];
    std::snprintf(name, sizeof name, "0x%02x", opcode);
    const std::string pickle = std::string("\x80\x02}(") + static_cast<char>(opcode) + mask_items() + "u.";
    CHECK_THROWS(bad_format, std::string("got opcode ") + name, parse_pickle(pickle));
    CHECK_THROWS(bad_format, kAdvice, parse_pickle(pickle));
    ++num_refused;
  }
  CHECK_EQ(num_refused, 256 - 21);
}

TEST_CASE("pickles that would run code or make other objects are refused") {
  const auto refused = [](const std::string& pickle, const std::string& needle) {
    CHECK_THROWS(bad_format, needle, parse_pickle(pickle));
    CHECK_THROWS(bad_format, kAdvice, parse_pickle(pickle));
  };
  refused("\x80\x02" + pickle_global("os", "system") + pickle_text("touch /tmp/x") + "\x85R.", "got 'os system'");
  refused("\x80\x02" + pickle_global("builtins", "eval") + pickle_text("1") + "\x85R.", "'builtins eval'");
  refused(make_pickle(mask_items(7, {.rebuild = pickle_global("torch._utils", "_rebuild_parameter")})), "_rebuild_parameter");
  refused(make_pickle(mask_items(7, {.storage_type = pickle_global("torch", "DoubleStorage")})), "'torch DoubleStorage'");
  refused("\x80\x02" + pickle_global("collections", "OrderedDict") + "}\x85R.", "empty OrderedDict");
  refused("\x80\x02" + pickle_global("torch", "FloatStorage") + ")R.", "to be made by the pickle");
  refused("\x80\x02K\x01)R.", "to be made by the pickle");
  refused("\x80\x02" + pickle_global("torch._utils", "_rebuild_tensor_v2") + ")R.", "six arguments of a plain tensor");
  refused(make_pickle(mask_items(7, {.tail = "K\x01" + pickle_global("collections", "OrderedDict") + ")R"})), "six arguments");
  refused("\x80\x02K\x01Q.", "expected a storage");
  refused("\x80\x02)Q.", "expected a storage");
  refused("\x80\x04}.", "protocol 2");
  refused("}.", "protocol 2");
  refused("", "expected more of the pickle");
  refused("\x80\x02}", "expected more of the pickle");
  refused("\x80\x02.", "expected one value at the end of the pickle, got 0");
  refused("\x80\x02}}.", "expected one value at the end of the pickle, got 2");
  refused("\x80\x02}..", "expected nothing behind");
  refused("\x80\x02u.", "expected a mark");
  refused("\x80\x02(K\x01u.", "expected pairs for a dict");
  refused("\x80\x02}(K\x01u.", "expected pairs for a dict");
  refused("\x80\x02s.", "expected a value on the pickle's stack");
  refused("\x80\x02q\x01.", "expected a value on the pickle's stack");
  refused("\x80\x02h\x01.", "expected a value in slot 1");
  refused(std::string("\x80\x02X\xff\xff\xff\xff", 7), "texts of at most 256 bytes");
  refused("\x80\x02" + pickle_global(std::string(300, 'a'), "b") + ".", "short names");
  refused("\x80\x02" + std::string(70000, '}'), "expected a pickle of at most 65536 bytes");
  // Doubling a tuple 60 times must cost nothing.
  std::string doubled = "\x80\x02)";
  for (int i = 0; i < 60; ++i) doubled += std::string("q\x01(h\x01h\x01t");
  refused(doubled + ".", "expected one value at the end");
}

TEST_CASE("dicts of another shape are refused") {
  const auto refused = [](const std::string& items, const std::string& needle) {
    CHECK_THROWS(bad_format, needle, parse_pickle(make_pickle(items)));
    CHECK_THROWS(bad_format, kAdvice, parse_pickle(make_pickle(items)));
  };
  refused("", "expected the key 'mask_token_id', found none");
  refused(pickle_text("mask_token_id") + "K\x07", "expected the key 'embedding', found none");
  refused(pickle_text("embedding") + PickleTensor{}.text(), "expected the key 'mask_token_id', found none");
  refused(mask_items() + pickle_text("optimizer") + "K\x01", "and 'per_position', got 'optimizer'");
  refused(mask_items() + pickle_text("per_position") + "\x88", "per_position: expected False");
  refused(mask_items() + pickle_text("per_position") + "K" + std::string(1, '\0'), "per_position: expected False");
  refused(mask_items() + pickle_text("mask_token_id") + "K\x07", "got 'mask_token_id' twice");
  refused("K\x01K\x01", "texts as the keys");
  refused(pickle_text("mask_token_id") + "\x88", "mask_token_id: expected an integer");
  refused(pickle_text("embedding") + "K\x01", "embedding: expected a tensor");
  CHECK_THROWS(bad_format, "expected a dict", parse_pickle("\x80\x02K\x01."));
}

TEST_CASE("tensors outside their storage are refused") {
  const auto refused = [](const PickleTensor& tensor, const std::string& needle) {
    CHECK_THROWS(bad_format, needle, parse_pickle(make_pickle(mask_items(7, tensor))));
  };
  refused({.num_stored = 71}, "expected a storage of 71 elements, got 144 bytes");
  refused({.num_stored = -1}, "expected a storage of -1 elements");
  refused({.key = "1"}, "expected an entry 'archive/data/1'");
  refused({.key = "../data.pkl"}, "expected an entry 'archive/data/../data.pkl'");
  refused({.offset = 1}, "inside its storage of 72, got 72 from 1 by 1");
  refused({.offset = -1}, "inside its storage");
  refused({.sizes = pickle_int(73) + "\x85"}, "inside its storage of 72, got 73");
  refused({.sizes = pickle_int(0) + "\x85"}, "inside its storage of 72, got 0");
  refused({.sizes = pickle_int(-1) + "\x85"}, "sizes and strides >= 0");
  refused({.strides = pickle_int(2) + "\x85"}, "from 0 by 2");
  refused({.strides = pickle_int(0) + "\x85"}, "from 0 by 0");
  refused({.sizes = pickle_int(0x7fffffff) + "\x85", .strides = pickle_int(0x7fffffff) + "\x85"}, "inside its storage");
  refused({.sizes = "(K\x01KHt", .strides = "(KHK\x01t"}, "expected one dimension, got 2");
  refused({.sizes = ")", .strides = ")"}, "expected one dimension, got 0");
  refused({.sizes = ")"}, "six arguments of a plain tensor");
  refused({.sizes = pickle_text("72") + "\x85"}, "sizes and strides >= 0");
}

TEST_CASE("archives of another shape are refused") {
  const std::string pickle = make_pickle(mask_items());
  const auto refused = [](const std::string& file, const std::string& needle) {
    CHECK_THROWS(bad_format, needle, parse(file));
    CHECK_THROWS(bad_format, kAdvice, parse(file));
  };
  const auto faulty = [&](const ZipFault& fault) { return make_zip(torch_files(pickle), fault); };
  parse(faulty({}));
  refused("", "expected a zip archive, got 0 bytes");
  refused(pickle + std::string(40, 'x'), "expected a zip archive that ends with its directory");
  refused(faulty({}) + "x", "expected a zip archive that ends with its directory");
  refused(faulty({.method = 8}), "'archive/data/0': expected stored bytes, got compressed");
  refused(faulty({.flags = 1}), "got compressed or encrypted");
  refused(faulty({.packed_size_change = -1}), "got compressed or encrypted");
  refused(faulty({.size_change = 1 << 20}), "bytes inside the file");
  refused(faulty({.size_change = -2}), "expected a storage of 72 elements, got 142 bytes");
  refused(faulty({.other_local_name = "archive/data/1"}), "expected the same entry in front of its data");
  refused(faulty({.offset_change = 1}), "expected the same entry in front of its data");
  refused(faulty({.offset_change = 0xfffff000}), "expected it inside the file");
  ZipFiles files = torch_files(pickle);
  files[1].second = "big";
  refused(make_zip(files), "expected little-endian");
  files = torch_files(pickle);
  files.push_back(files[3]);
  refused(make_zip(files), "got 'archive/data/0' twice");
  files.back() = {"else/data/0", ""};
  refused(make_zip(files), "expected all entries in 'archive/', got 'else/data/0'");
  files.back() = {"archive/\xff", ""};
  refused(make_zip(files), "expected zip entries with ASCII names, got 'archive/\\xff'");
  refused(make_zip({{"archive/data.txt", ""}}), "with data.pkl, found none");
  refused(make_zip({}), "with data.pkl, found none");
  files = {};
  for (int i = 0; i < 300; ++i) files.push_back({"a/" + std::to_string(i), ""});
  refused(make_zip(files), "expected at most 256 zip entries, got 300");
  const std::string good = faulty({});
  for (size_t size = 0; size < good.size(); ++size)
    CHECK_THROWS(bad_format, kAdvice, parse(good.substr(0, size)));
  for (const size_t at : {4, 8, 10, 12, 16}) {  // every number of the end record but for those of the next disk
    std::string file = good;
    file[good.size() - 22 + at] ^= 1;
    CHECK_THROWS(bad_format, kAdvice, parse(file));
  }
}

CHECK_MAIN()
