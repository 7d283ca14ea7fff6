#include "checkpoint/torch_pickle.h"

#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>

namespace mimo_rt {
namespace {

constexpr size_t kMaxDims = 8;

using Kind = PickleValue::Kind;

constexpr const char* kHex = "0123456789abcdef";
constexpr uint8_t kProtocol = 2;
constexpr size_t kMaxTextBytes = 256;

/// A stack machine over indices of values. Nothing is ever called: REDUCE only checks that its
/// arguments are those of a tensor or of an empty OrderedDict.
class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const FailFile& fail_file)
      : bytes_(bytes), fail_file_(fail_file) {}

  Pickle run() {
    check(bytes_.size() <= kMaxPickleBytes, "expected a pickle of at most ", kMaxPickleBytes,
          " bytes, got ", bytes_.size());
    check(take() == 0x80 && take() == kProtocol, "expected a pickle of protocol 2, got another");
    while (step(take())) {
    }
    check(stack_.size() == 1, "expected one value at the end of the pickle, got ", stack_.size());
    check(pos_ == bytes_.size(), "expected nothing behind the pickle's end");
    pickle_.root = stack_[0];
    return std::move(pickle_);
  }

 private:
  template <typename... Args>
  void check(bool ok, const Args&... args) const {
    if (!ok) fail_file_(concat(args...));
  }

  uint8_t take() {
    check(pos_ < bytes_.size(), "expected more of the pickle, got its end at byte ", pos_);
    return std::to_integer<uint8_t>(bytes_[pos_++]);
  }
  uint32_t take_number(uint32_t num_bytes) {
    uint32_t value = 0;
    for (uint32_t i = 0; i < num_bytes; ++i) value |= uint32_t{take()} << (8 * i);
    return value;
  }
  std::string take_text(size_t num_bytes) {
    check(num_bytes <= kMaxTextBytes, "expected texts of at most ", kMaxTextBytes,
          " bytes in the pickle, got ", num_bytes);
    std::string text;
    for (size_t i = 0; i < num_bytes; ++i) text += static_cast<char>(take());
    return text;
  }
  std::string take_line() {
    std::string line;
    for (uint8_t c = take(); c != '\n'; c = take()) {
      check(line.size() < kMaxTextBytes, "expected short names in the pickle");
      line += static_cast<char>(c);
    }
    return line;
  }

  void push(PickleValue value) {
    stack_.push_back(static_cast<uint32_t>(pickle_.values.size()));
    pickle_.values.push_back(std::move(value));
  }
  void push(Kind kind, int64_t number) {
    PickleValue value;
    value.kind = kind;
    value.number = number;
    push(std::move(value));
  }
  uint32_t pop() {
    check(!stack_.empty(), "expected a value on the pickle's stack, found none");
    const uint32_t idx = stack_.back();
    stack_.pop_back();
    return idx;
  }
  /// The values above the topmost mark, which goes too.
  std::vector<uint32_t> pop_to_mark() {
    size_t begin = stack_.size();
    while (begin > 0 && at(stack_[begin - 1]).kind != Kind::mark) --begin;
    check(begin > 0, "expected a mark on the pickle's stack, found none");
    const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(begin);
    std::vector<uint32_t> items(first, stack_.end());
    stack_.resize(begin - 1);
    return items;
  }
  const PickleValue& at(uint32_t idx) const { return pickle_.values[idx]; }

  bool step(uint8_t opcode);
  void push_text(size_t num_bytes);
  void push_global();
  void push_tuple(std::vector<uint32_t> items);
  void set_items(const std::vector<uint32_t>& items);
  void make_storage();
  void reduce();
  void make_tensor(const PickleValue& arguments);
  void append_numbers(const PickleValue& tuple, std::vector<int64_t>& out) const;
  void keep(uint32_t slot) {
    check(!stack_.empty(), "expected a value on the pickle's stack, found none");
    memo_[slot] = stack_.back();
  }
  void get(uint32_t slot) {
    const auto found = memo_.find(slot);
    check(found != memo_.end(), "expected a value in slot ", slot, " of the pickle, found none");
    stack_.push_back(found->second);
  }

  std::span<const std::byte> bytes_;
  const FailFile& fail_file_;
  size_t pos_ = 0;
  Pickle pickle_;
  std::vector<uint32_t> stack_;
  std::map<uint32_t, uint32_t> memo_;
};

/// @return false at STOP
bool Machine::step(uint8_t opcode) {
  switch (opcode) {
    case '.': return false;
    case '}': push(Kind::dict, 0); break;
    case '(': push(Kind::mark, 0); break;
    case 'q': keep(take()); break;
    case 'r': keep(take_number(4)); break;
    case 'h': get(take()); break;
    case 'j': get(take_number(4)); break;
    case 'X': push_text(take_number(4)); break;
    case 'K': push(Kind::integer, take()); break;
    case 'M': push(Kind::integer, take_number(2)); break;
    case 'J': push(Kind::integer, static_cast<int32_t>(take_number(4))); break;
    case 0x88: push(Kind::boolean, 1); break;
    case 0x89: push(Kind::boolean, 0); break;
    case ')': push_tuple({}); break;
    case 't': push_tuple(pop_to_mark()); break;
    case 0x85: push_tuple({pop()}); break;
    case 's': {
      const uint32_t value = pop();
      set_items({pop(), value});
      break;
    }
    case 'u': set_items(pop_to_mark()); break;
    case 'c': push_global(); break;
    case 'Q': make_storage(); break;
    case 'R': reduce(); break;
    default:
      check(false, "expected only the pickle opcodes of a plain tensor in a dict, got opcode 0x",
            kHex[opcode >> 4], kHex[opcode & 15], " at byte ", pos_ - 1);
  }
  return true;
}

void Machine::push_text(size_t num_bytes) {
  PickleValue value;
  value.kind = Kind::text;
  value.text = take_text(num_bytes);
  push(std::move(value));
}

void Machine::push_tuple(std::vector<uint32_t> items) {
  PickleValue value;
  value.kind = Kind::tuple;
  value.items = std::move(items);
  push(std::move(value));
}

void Machine::push_global() {
  struct Known {
    const char* name;
    Kind kind;
    DType dtype;
  };
  static constexpr Known kKnown[] = {
      {"torch._utils _rebuild_tensor_v2", Kind::rebuild_global, DType::u8},
      {"collections OrderedDict", Kind::ordered_dict_global, DType::u8},
      {"torch BFloat16Storage", Kind::dtype_global, DType::bf16},
      {"torch HalfStorage", Kind::dtype_global, DType::f16},
      {"torch FloatStorage", Kind::dtype_global, DType::f32}};
  const std::string module = take_line();
  const std::string name = module + ' ' + take_line();
  const auto* found = std::find_if(std::begin(kKnown), std::end(kKnown),
                                   [&](const Known& known) { return name == known.name; });
  check(found != std::end(kKnown), "expected only the globals of a plain tensor in the pickle, got ",
        printable(name));
  PickleValue value;
  value.kind = found->kind;
  value.dtype = found->dtype;
  push(std::move(value));
}

void Machine::set_items(const std::vector<uint32_t>& items) {
  check(!stack_.empty() && at(stack_.back()).kind == Kind::dict && items.size() % 2 == 0,
        "expected pairs for a dict in the pickle, got something else");
  std::vector<uint32_t>& dict = pickle_.values[stack_.back()].items;
  dict.insert(dict.end(), items.begin(), items.end());
}

// ("storage", <type>, "<key>", "<device>", <elements>)
void Machine::make_storage() {
  const PickleValue& id = at(pop());
  const auto has = [&](size_t i, Kind kind) { return at(id.items[i]).kind == kind; };
  check(id.kind == Kind::tuple && id.items.size() == 5 && has(0, Kind::text) &&
            at(id.items[0]).text == "storage" && has(1, Kind::dtype_global) &&
            has(2, Kind::text) && has(3, Kind::text) && has(4, Kind::integer),
        "expected a storage as the pickle's only persistent object, got something else");
  PickleValue storage;
  storage.kind = Kind::storage;
  storage.dtype = at(id.items[1]).dtype;
  storage.text = at(id.items[2]).text;
  storage.number = at(id.items[4]).number;
  push(std::move(storage));
}

void Machine::reduce() {
  const uint32_t arguments = pop(), callable = pop();
  check(at(arguments).kind == Kind::tuple, "expected a tuple of arguments in the pickle");
  if (at(callable).kind == Kind::rebuild_global) return make_tensor(at(arguments));
  check(at(callable).kind == Kind::ordered_dict_global && at(arguments).items.empty(),
        "expected only a tensor or an empty OrderedDict to be made by the pickle");
  push(Kind::ordered_dict, 0);
}

// (storage, offset, sizes, strides, requires_grad, backward hooks)
void Machine::make_tensor(const PickleValue& arguments) {
  const std::vector<uint32_t>& items = arguments.items;
  const auto has = [&](size_t i, Kind kind) { return at(items[i]).kind == kind; };
  check(items.size() == 6 && has(0, Kind::storage) && has(1, Kind::integer) &&
            has(2, Kind::tuple) && has(3, Kind::tuple) && has(4, Kind::boolean) &&
            has(5, Kind::ordered_dict) &&
            at(items[2]).items.size() == at(items[3]).items.size(),
        "expected the six arguments of a plain tensor in the pickle, got others");
  check(at(items[2]).items.size() <= kMaxDims,  // copies of a long tuple could fill the memory
        "expected a tensor of few dimensions in the pickle, got more");
  PickleValue tensor;
  tensor.kind = Kind::tensor;
  tensor.items = {items[0]};
  tensor.numbers = {at(items[1]).number};
  append_numbers(at(items[2]), tensor.numbers);
  append_numbers(at(items[3]), tensor.numbers);
  push(std::move(tensor));
}

void Machine::append_numbers(const PickleValue& tuple, std::vector<int64_t>& out) const {
  for (const uint32_t item : tuple.items) {
    check(at(item).kind == Kind::integer && at(item).number >= 0,
          "expected sizes and strides >= 0 in the pickle, got something else");
    out.push_back(at(item).number);
  }
}

}  // namespace

Pickle read_torch_pickle(std::span<const std::byte> bytes, const FailFile& fail_file) {
  return Machine(bytes, fail_file).run();
}

}  // namespace mimo_rt
