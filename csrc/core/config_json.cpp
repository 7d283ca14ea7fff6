// config.json -> RawConfig. nlohmann-json does the syntax; depth, size and duplicate keys are ours.
#include "core/checks.h"
#include "core/config_fields.h"
#include "core/text.h"

#include <nlohmann/json.hpp>

#include <set>
#include <utility>

namespace mimo_rt {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 16;

/// Where a text comes from, and the public operation that reads it.
struct Source {
  std::string_view name;
  const char* where;
};

Json parse_json(std::string_view text, const Source& source) {
  MIMO_RT_CHECK(text.size() <= kMaxBytes, bad_format, source.where, source.name, ": expected at most ",
                kMaxBytes, " bytes, got ", text.size());
  std::vector<std::set<std::string>> open_objects;
  const auto on_event = [&](int depth, Json::parse_event_t event, Json& value) {
    MIMO_RT_CHECK(depth <= kMaxDepth, bad_format, source.where, source.name, ": expected at most ", kMaxDepth,
                  " levels of nesting");
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      MIMO_RT_CHECK(open_objects.back().insert(key).second, bad_format, source.where, source.name,
                    ": expected each key once, got ", printable(key), " twice");
    }
    return true;
  };
  try {
    Json root = Json::parse(text.begin(), text.end(), on_event);
    MIMO_RT_CHECK(root.is_object(), bad_format, source.where, source.name, ": expected a JSON object, got ",
                  root.type_name());
    return root;
  } catch (const Json::exception& error) {
    fail(ErrorCode::bad_format, source.where, source.name, ": not valid JSON: ", printable(error.what(), 300));
  }
}

std::string show(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return concat("a list of ", value.size());
  if (value.is_string()) return printable(value.get_ref<const std::string&>(), 60);
  return value.dump();
}

// Steps through "a.b.c"; nullptr when absent or null.
const Json* find_path(const Json& root, std::string_view path, const Source& source) {
  const Json* value = &root;
  std::string_view rest = path;
  while (true) {
    const size_t dot = rest.find('.');
    const auto found = value->find(rest.substr(0, dot));
    if (found == value->end() || found->is_null()) return nullptr;
    value = &*found;
    if (dot == std::string_view::npos) return value;
    MIMO_RT_CHECK(value->is_object(), bad_format, source.where, source.name, ": ",
                  path.substr(0, path.size() - rest.size() + dot), ": expected an object, got ",
                  show(*value));
    rest.remove_prefix(dot + 1);
  }
}

bool is_allowed(const ConfigField& field, std::string_view value) {
  std::string_view rest = field.allowed ? field.allowed : value;
  while (true) {
    const size_t bar = rest.find('|');
    if (rest.substr(0, bar) == value) return true;
    if (bar == std::string_view::npos) return false;
    rest.remove_prefix(bar + 1);
  }
}

// Converts one JSON value for one field.
struct Reader {
  const ConfigField& field;
  const Source& source;
  const Json& value;

  [[noreturn]] void mistyped(const Json& got) const {
    fail_field(field, ErrorCode::bad_format, source.name, show(got), source.where);
  }
  [[noreturn]] void out_of_range(const std::string& got) const {
    fail_field(field, field.code, source.name, got, source.where);
  }

  int64_t integer(const Json& number) const {
    if (!number.is_number_integer()) mistyped(number);
    const bool fits = !number.is_number_unsigned() || number.get<uint64_t>() <= INT64_MAX;
    const int64_t result = fits ? number.get<int64_t>() : -1;
    const auto real = static_cast<double>(result);
    if (!fits || real < field.min || real > field.max) out_of_range(show(number));
    return result;
  }

  void read(uint32_t& out) const { out = static_cast<uint32_t>(integer(value)); }
  void read(double& out) const {
    if (!value.is_number()) mistyped(value);
    out = value.get<double>();
    if (!(out >= field.min && out <= field.max)) out_of_range(show(value));
  }
  void read(bool& out) const {
    if (!value.is_boolean()) mistyped(value);
    out = value.get<bool>();
    if (field.allowed && !is_allowed(field, out ? "true" : "false")) out_of_range(show(value));
  }
  void read(std::string& out) const { out = text(value); }
  void read(IntList& out) const {
    out.scalar = value.is_number_integer();
    if (out.scalar && field.scalar_ok) {
      out.values = {integer(value)};
      return;
    }
    if (!value.is_array()) mistyped(value);
    for (const Json& item : value) out.values.push_back(integer(item));
  }
  void read(StringList& out) const {
    if (!value.is_array()) mistyped(value);
    for (const Json& item : value) out.push_back(text(item));
  }

  std::string text(const Json& item) const {
    if (!item.is_string()) mistyped(item);
    const auto& result = item.get_ref<const std::string&>();
    if (field.allowed && !is_allowed(field, result)) out_of_range(show(item));
    return result;
  }
};

template <typename T>
void read_field(const ConfigField& field, std::optional<T>& member, const Json& root,
                const Source& source) {
  const char* first_key = nullptr;
  for (const char* key : field.keys) {
    const Json* value = key ? find_path(root, key, source) : nullptr;
    if (!value) continue;
    T result{};
    Reader{field, source, *value}.read(result);
    MIMO_RT_CHECK(!first_key || *member == result, bad_format, source.where, source.name, ": ", first_key,
                  " and ", key, ": expected equal values, got ", show(*value), " in the second");
    if (!first_key) first_key = key;
    member = std::move(result);
  }
  if (field.need == Need::required && !member)
    fail_field(field, ErrorCode::bad_format, source.name, "nothing: the field is missing",
               source.where);
}

}  // namespace

RawConfig parse_raw_config(std::string_view json, std::string_view source) {
  return parse_raw_config(json, source, {config_fields(), "ModelConfig.from_json"});
}

RawConfig parse_raw_config(std::string_view json, std::string_view source_name,
                           const ConfigTable& table) {
  const Source source{source_name, table.where};
  const Json root = parse_json(json, source);
  RawConfig raw;
  for (const ConfigField& field : table.fields)
    std::visit([&](auto member) { read_field(field, raw.*member, root, source); }, field.member);
  // An object without a type would be dropped silently by the table.
  MIMO_RT_CHECK(!root.contains("rope_scaling") || root["rope_scaling"].is_null() ||
                    raw.rope_scaling_type,
                unsupported_shape, source.where, source.name,
                ": rope_scaling: expected null or an object of type 'default', got another one");
  MIMO_RT_CHECK(!root.contains("quantization_config") || root["quantization_config"].is_null() ||
                    raw.quant_method,
                bad_format, source.where, source.name,
                ": quantization_config: expected null or an object with quant_method");
  return raw;
}

}  // namespace mimo_rt
