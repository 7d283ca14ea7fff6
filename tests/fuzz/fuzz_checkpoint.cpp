// Mutation fuzzer of the checkpoint reader: headers, indices, configs and files of torch.save in
// memory, directories and files of the packed cache on disk. Any outcome but success or mimo_rt::Error is a crash. Meant to be built with
// -fsanitize=address,undefined. Inputs depend on --seed alone, so a crash repeats with its seed.
//   fuzz_checkpoint [--seconds 20] [--seed 1] [--self-test 1]
// --self-test 1 adds a reader with a planted fault: the run must fail.
#include <mimo_rt/checkpoint.h>
#include <mimo_rt/draft.h>
#include <mimo_rt/error.h>

#include "checkpoint/index.h"
#include "checkpoint/mask_embedding.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/scan.h"
#include "checkpoint/tensor_table.h"
#include "safetensors_writer.h"
#include "torch_file_writer.h"
#include "weights/packed.h"
#include "weights/packed_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <set>

namespace {

using mimo_rt::Checkpoint;
using mimo_rt::ModelConfig;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  size_t below(size_t bound) { return bound ? next() % bound : 0; }

 private:
  uint64_t state_;
};

// Pieces of the formats, and numbers at the edges of their types.
const std::vector<std::string> kTokens = {
    "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u0000", "\\ud800", "\\udc00", "null", "true",
    "-1", "0", "1", "2", "7", "8", "127", "128", "255", "65536", "4294967295", "4294967296",
    "281474976710655", "281474976710656", "9223372036854775807", "18446744073709551615",
    "18446744073709551616", "1e999", "0.5", "1e-400", "NaN", " ", "\n", std::string(1, '\0'),
    "\xff", "\xef\xbb\xbf",
    "\"dtype\"", "\"shape\"", "\"data_offsets\"", "\"__metadata__\"", "\"U8\"",
    "\"F4\"", "\"F8_E8M0\"", "\"BF16\"", "\"F32\"", "..", "/", "\"weight_map\"", "[[[[[[[[",
    "{\"a\":{\"a\":", "\"model.layers.0.mlp.gate.weight\"", "\"mimo_v2_flash\"", "\"split\"",
    "\"layer_types\"", "\"rope_parameters\"", "\"hybrid_block_size\"",
    "\"dflash_config\"", "\"use_swa\":true,", "cos\nsystem\n", "ctorch\nHalfStorage\n", "(tR", "\x85",
    "}(", "u.", "q\x01h\x01", "Q", "PK\x01\x02", "PK\x03\x04", "PK\x05\x06", "\xff\xff\xff\x7f"};

std::string mutate(std::string text, const std::vector<std::string>& corpus, Random& random) {
  const size_t rounds = 1 + random.below(4);
  for (size_t i = 0; i < rounds; ++i) {
    const size_t at = random.below(text.size() + 1), length = random.below(16);
    const std::string& token = kTokens[random.below(kTokens.size())];
    switch (random.below(9)) {
      case 0: if (at < text.size()) text[at] ^= static_cast<char>(1u << random.below(8)); break;
      case 1: if (at < text.size()) text[at] = static_cast<char>(random.next()); break;
      case 2: text.erase(at, length); break;
      case 3: text.insert(at, text.substr(at, length)); break;
      case 4: text.insert(at, token); break;
      case 5: text.replace(at, std::min(token.size(), text.size() - at), token); break;
      case 6: text.resize(at); break;
      case 7: {  // a number becomes another one
        const size_t begin = text.find_first_of("0123456789", at);
        if (begin == std::string::npos) break;
        const size_t end = text.find_first_not_of("0123456789", begin);
        text.replace(begin, end == std::string::npos ? end : end - begin, token);
        break;
      }
      default: {  // the tail of another input
        const std::string& other = corpus[random.below(corpus.size())];
        text = text.substr(0, at) + other.substr(random.below(other.size() + 1));
      }
    }
    if (text.size() > 1 << 16) text.resize(1 << 16);
  }
  return text;
}

/// One entry point with its inputs. An input with a new outcome joins the corpus.
struct Target {
  const char* name;
  std::vector<std::string> corpus;
  std::function<void(const std::string&)> run;
  std::set<std::string> outcomes;
  uint64_t executions = 0;
};

// A message without what varies: what was got, digits and quoted text.
std::string outcome_of(std::string_view message) {
  for (const char* tail : {", got ", "last read", "invalid literal", "reference_token"})
    message = message.substr(0, message.find(tail));
  std::string out;
  bool is_quoted = false;
  for (const char c : message) {
    if (c == '\'') is_quoted = !is_quoted;
    if (!is_quoted && !(c >= '0' && c <= '9')) out += c;
  }
  return out;
}

bool step(Target& target, Random& random) {
  const std::string& seed = target.corpus[random.below(target.corpus.size())];
  std::string input = mutate(seed, target.corpus, random);
  std::string outcome = "success";
  ++target.executions;
  try {
    target.run(input);
  } catch (const mimo_rt::Error& error) {
    outcome = outcome_of(error.what());
    if (error.code() == mimo_rt::ErrorCode::internal) outcome = "";
  } catch (const std::exception& error) {
    outcome = "";
    std::fprintf(stderr, "unexpected exception: %s\n", error.what());
  }
  if (outcome.empty()) {
    std::fprintf(stderr, "%s: crash at execution %llu with input:\n%s\n", target.name,
                 static_cast<unsigned long long>(target.executions), input.c_str());
    return false;
  }
  constexpr size_t kMaxCorpus = 512;
  if (target.outcomes.insert(outcome).second && target.corpus.size() < kMaxCorpus)
    target.corpus.push_back(std::move(input));
  return true;
}

const std::string kConfig =
    "{\"model_type\":\"mimo_v2_flash\",\"hidden_size\":32,\"num_hidden_layers\":2,"
    "\"vocab_size\":4,\"intermediate_size\":8,\"max_position_embeddings\":64,"
    "\"layernorm_epsilon\":1e-5,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
    "\"head_dim\":8,\"v_head_dim\":4,\"rope_theta\":10000,\"swa_rope_theta\":10000,"
    "\"partial_rotary_factor\":0.5,\"sliding_window\":4,\"add_swa_attention_sink_bias\":true,"
    "\"hybrid_layer_pattern\":[0,1],\"moe_layer_freq\":[0,1],\"n_routed_experts\":2,"
    "\"num_experts_per_tok\":1,\"moe_intermediate_size\":32,\"eos_token_id\":[1,2],"
    "\"attention_projection_layout\":\"fused_qkv\",\"quantization_config\":{\"quant_method\":"
    "\"fp8\",\"weight_block_size\":[128,128],\"store_dtype\":\"mxfp4\",\"mxfp4_block_size\":32,"
    "\"ignored_layers\":[\"o_proj\"]}}";

const std::string kPortConfig =
    "{\"model_type\":\"mimo_v2_flash\",\"hidden_size\":32,\"num_hidden_layers\":2,"
    "\"vocab_size\":4,\"intermediate_size\":8,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-5,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":12,\"v_head_dim\":4,"
    "\"layer_types\":[\"full_attention\",\"sliding_attention\"],\"mlp_layer_types\":[\"dense\","
    "\"sparse\"],\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\","
    "\"rope_theta\":5e6},\"sliding_attention\":{\"rope_theta\":1e4}},\"sliding_window\":5,"
    "\"n_routed_experts\":2,\"num_experts_per_tok\":1,\"moe_intermediate_size\":16}";

const std::string kDraftConfig =
    "{\"model_type\":\"qwen3\",\"hidden_size\":32,\"intermediate_size\":48,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"v_head_dim\":16,"
    "\"partial_rotary_factor\":0.5,\"rope_theta\":10000,\"block_size\":8,\"num_target_layers\":5,"
    "\"vocab_size\":100,\"sliding_window\":64,\"rms_norm_eps\":1e-5,\"layer_types\":"
    "[\"sliding_attention\",\"sliding_attention\"],\"dflash_config\":{\"target_layer_ids\":[0,4],"
    "\"mask_token_id\":7,\"block_size\":8,\"use_swa\":true,\"swa_window_size\":64,"
    "\"attention_value_scale\":0.612,\"attention_sink_bias\":true}}";

std::vector<writer::Tensor> tensors_of(const ModelConfig& config) {
  std::vector<writer::Tensor> tensors;
  for (const mimo_rt::ExpectedTensor& expected : mimo_rt::expected_tensors(config)) {
    const mimo_rt::DType dtype = expected.forms[0].dtypes[0];
    uint64_t bits = mimo_rt::dtype_bits(dtype);
    for (const uint64_t dim : expected.forms[0].shape) bits *= dim;
    const char* text = dtype == mimo_rt::DType::u8         ? "U8"
                       : dtype == mimo_rt::DType::fp8_e4m3 ? "F8_E4M3"
                       : dtype == mimo_rt::DType::f32      ? "F32"
                                                           : "BF16";
    tensors.push_back({expected.name, text, expected.forms[0].shape, std::string(bits / 8, '\1')});
  }
  return tensors;
}

// Reads what the library would read: both ends of every row and every scale, through the table.
void read_all(const Checkpoint& checkpoint, const ModelConfig& config) {
  using mimo_rt::MatrixKind;
  unsigned sum = 0;
  const auto touch = [&](MatrixKind kind, uint32_t layer, uint32_t expert) {
    const mimo_rt::MatrixSource source =
        mimo_rt::find_matrix(checkpoint, config, kind, layer, expert);
    for (uint32_t row = 0; row < source.rows; ++row) {
      const auto data = source.row_data(row);
      sum += std::to_integer<unsigned>(data.front()) + std::to_integer<unsigned>(data.back());
      if (source.scale) sum += std::to_integer<unsigned>(source.row_scales(row).back());
    }
  };
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    for (const MatrixKind kind : {MatrixKind::q_proj, MatrixKind::k_proj, MatrixKind::v_proj,
                                  MatrixKind::o_proj})
      touch(kind, i, 0);
    if (config.layers[i].is_moe) {
      for (uint32_t expert = 0; expert < config.num_experts; ++expert)
        for (const MatrixKind kind : {MatrixKind::expert_gate_proj, MatrixKind::expert_up_proj,
                                      MatrixKind::expert_down_proj})
          touch(kind, i, expert);
    } else {
      for (const MatrixKind kind : {MatrixKind::gate_proj, MatrixKind::up_proj,
                                    MatrixKind::down_proj})
        touch(kind, i, 0);
    }
  }
  volatile unsigned keep = sum;
  (void)keep;
}

void run_directory(const writer::TempDir& dir, const std::string& config_text, bool use_mmap) {
  Checkpoint::Options options;
  options.use_mmap = use_mmap;
  const Checkpoint checkpoint = Checkpoint::open(dir.path(), options);
  for (const mimo_rt::TensorInfo& tensor : checkpoint.tensors()) {
    try {
      mimo_rt::check_finite(tensor, tensor.dtype);
    } catch (const mimo_rt::Error&) {
    }
    checkpoint.release_pages(tensor);
  }
  const ModelConfig config = ModelConfig::from_json(config_text, "config.json");
  checkpoint.validate(config);
  read_all(checkpoint, config);
}

Target header_target(const std::string& shard, const std::string& header) {
  std::vector<std::string> corpus = {header};
  corpus.push_back("{" + writer::entry("a", "U8", "[8]", "[0,8]") + "}  ");
  corpus.push_back("{\"__metadata__\":{\"k\":\"\\u00e9\\ud83d\\ude00\"}," +
                   writer::entry("f", "F4", "[2,0,4]", "[0,0]") + "}");
  corpus.push_back("{}");
  const size_t data_bytes = shard.size() - 8 - header.size();
  return {"header", corpus, [=](const std::string& input) {
            for (const size_t bytes : {size_t{0}, size_t{8}, data_bytes})
              if (bytes == data_bytes || input.size() < 256) {
                try {
                  mimo_rt::parse_header(std::as_bytes(std::span(input)),
                                        8 + input.size() + bytes, "fuzz");
                  return;
                } catch (const mimo_rt::Error&) {
                  if (bytes == data_bytes) throw;
                }
              }
          }, {}, 0};
}

void read_mask(const std::string& file) {
  const mimo_rt::MaskEmbedding mask =
      mimo_rt::parse_torch_mask_embedding(std::as_bytes(std::span(file)), "fuzz");
  unsigned sum = 0;
  for (const std::byte byte : mask.tensor.data) sum += std::to_integer<unsigned>(byte);
  volatile unsigned keep = sum;
  (void)keep;
}

// The head of a file of the packed cache: header and table of sums. Half of the inputs get the sum that fits them, so
// that more than the sum is looked at; the file becomes longer or shorter with the input.
Target packed_target(const writer::TempDir& dir) {
  const mimo_rt::PackedFileInfo info{.key = {1, 2, 3}, .layout_version = mimo_rt::kPackedLayoutVersion,
                                     .num_bytes = 5000, .part = "target", .library_version = "0",
                                     .source_dir = "/model"};
  const mimo_rt::Arena arena(info.num_bytes, "fuzz");
  std::memset(arena.data(), 7, info.num_bytes);
  const int file = ::open((dir.path() / "packed").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  mimo_rt::write_packed_file(file, "packed", info, arena, {}, "fuzz");
  std::string head(4096 + sizeof(uint64_t), '\0');
  if (::pread(file, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()))
    throw std::runtime_error("cannot read the seed");
  return {"packed file", {head}, [file, head, info, num_runs = 0](const std::string& input) mutable {
            const size_t sealed = mimo_rt::kPackedHeaderBytes - sizeof(uint64_t);
            std::string bytes = input;
            bytes.resize(head.size());
            if (++num_runs & 1) {
              const uint64_t sum = mimo_rt::packed_sum(std::as_bytes(std::span(bytes).first(sealed)), 0);
              std::memcpy(bytes.data() + sealed, &sum, sizeof sum);
            }
            const auto size = static_cast<off_t>(mimo_rt::packed_file_bytes(info.num_bytes) + input.size());
            if (::ftruncate(file, size - static_cast<off_t>(head.size())) != 0 ||
                ::pwrite(file, bytes.data(), bytes.size(), 0) < 0)
              throw std::runtime_error("cannot write the input");
            mimo_rt::Weights::Options options;
            options.num_threads = 1;
            options.use_mmap = num_runs & 2;
            mimo_rt::read_packed_info(file, "fuzz", "fuzz");
            const mimo_rt::Arena found = mimo_rt::read_packed_file(file, "fuzz", info, options, "fuzz");
            for (uint64_t i = 0; i < info.num_bytes; ++i)
              if (found.data()[i] != 7) throw std::runtime_error("wrong weights were believed");
          }, {}, 0};
}

// Trusts the offsets that it parses.
Target faulty_target() {
  return {"self-test", {"{\"a\":[0,8]}"}, [](const std::string& input) {
            const size_t comma = input.find(',');
            if (comma == std::string::npos) return;
            const size_t end = std::strtoull(input.c_str() + comma + 1, nullptr, 10);
            std::vector<char> buffer(8);  // the sanitizer, and nothing else, must see the write behind it
            volatile char* bytes = buffer.data();
            if (end > 0 && end < 64) bytes[end - 1] = 1;
          }, {}, 0};
}

std::vector<Target> make_targets(const writer::TempDir& dir) {
  const std::vector<writer::Tensor> tensors =
      tensors_of(ModelConfig::from_json(kConfig, "config.json"));
  const size_t half = tensors.size() / 2;
  const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(half);
  const std::string shard = writer::make_file({tensors.begin(), middle});
  const std::string other_shard = writer::make_file({middle, tensors.end()});
  const std::string header =
      shard.substr(8, static_cast<unsigned char>(shard[8]) == '{'
                          ? static_cast<unsigned char>(shard[0]) +
                                256u * static_cast<unsigned char>(shard[1])
                          : 0);
  std::string map;
  for (size_t i = 0; i < tensors.size(); ++i)
    map += (i ? ",\"" : "\"") + tensors[i].name + (i < half ? "\":\"s1\"" : "\":\"s2\"");
  const std::string index = "{\"metadata\":{\"total_size\":1},\"weight_map\":{" + map + "}}";
  const char* index_name = "model.safetensors.index.json";
  dir.write("s1", shard);
  dir.write("s2", other_shard);
  dir.write(index_name, index);
  run_directory(dir, kConfig, true);  // the seeds are good

  std::vector<Target> targets;
  targets.push_back(header_target(shard, header));
  targets.push_back({"index", {index, "{\"weight_map\":{\"a\":\"b\"}}"},
                     [](const std::string& input) { mimo_rt::parse_index(input, "fuzz"); }, {}, 0});
  targets.push_back({"config", {kConfig, kPortConfig}, [](const std::string& input) {
                       const ModelConfig config = ModelConfig::from_json(input, "fuzz");
                       if (config.num_experts < 1000 && config.num_layers < 100)
                         mimo_rt::expected_tensors(config);
                     }, {}, 0});
  const std::string pickle = writer::make_pickle(writer::mask_items());
  targets.push_back({"draft config", {kDraftConfig}, [](const std::string& input) {
                       mimo_rt::DraftConfig::from_json(input, "fuzz");
                     }, {}, 0});
  targets.push_back({"torch pickle", {pickle}, [](const std::string& input) {
                       read_mask(writer::make_torch_file(input));
                     }, {}, 0});
  targets.push_back({"torch file", {writer::make_torch_file(pickle)}, read_mask, {}, 0});
  targets.push_back({"shard on disk", {shard}, [&dir, shard](const std::string& input) {
                       dir.write("s1", input);
                       try {
                         run_directory(dir, kConfig, input.size() % 2 == 0);
                       } catch (...) {
                         dir.write("s1", shard);
                         throw;
                       }
                       dir.write("s1", shard);
                     }, {}, 0});
  targets.push_back({"index on disk", {index}, [&dir, index, index_name](const std::string& input) {
                       dir.write(index_name, input);
                       try {
                         run_directory(dir, kConfig, true);
                       } catch (...) {
                         dir.write(index_name, index);
                         throw;
                       }
                       dir.write(index_name, index);
                     }, {}, 0});
  targets.push_back({"config on disk", {kConfig}, [&dir](const std::string& input) {
                       run_directory(dir, input, true);
                     }, {}, 0});
  targets.push_back(packed_target(dir));
  return targets;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 20;
  uint64_t seed = 1;
  bool self_test = false;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 < argc && !std::strcmp(argv[i], "--seconds")) {
      seconds = std::strtod(argv[i + 1], nullptr);
    } else if (i + 1 < argc && !std::strcmp(argv[i], "--seed")) {
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else if (i + 1 < argc && !std::strcmp(argv[i], "--self-test")) {
      self_test = !std::strcmp(argv[i + 1], "1");
    } else {
      std::fprintf(stderr, "usage: fuzz_checkpoint [--seconds N] [--seed N] [--self-test 0|1]\n");
      return 2;
    }
  }
  const writer::TempDir dir;
  std::vector<Target> targets = make_targets(dir);
  if (self_test) targets.insert(targets.begin(), faulty_target());
  Random random(seed);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (uint64_t round = 0; round % 64 != 0 || elapsed() < seconds; ++round)
    for (size_t i = 0; i < targets.size(); ++i) {
      const bool on_disk = i >= 6;  // slower, so rarer
      if ((!on_disk || round % 16 == i) && !step(targets[i], random)) return 1;
    }
  uint64_t executions = 0, outcomes = 0;
  for (const Target& target : targets) {
    std::printf("%-15s %10llu executions %4zu unique outcomes\n", target.name,
                static_cast<unsigned long long>(target.executions), target.outcomes.size());
    executions += target.executions;
    outcomes += target.outcomes.size();
  }
  std::printf("seed %llu: %llu executions, %llu unique outcomes, %.1f s, no crash\n",
              static_cast<unsigned long long>(seed), static_cast<unsigned long long>(executions),
              static_cast<unsigned long long>(outcomes), elapsed());
  return 0;
}
