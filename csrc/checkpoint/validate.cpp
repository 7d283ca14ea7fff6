// Checkpoint::validate: the files hold what the config implies, no less and no more.
#include <mimo_rt/checkpoint.h>

#include "checkpoint/tensor_table.h"
#include "core/checks.h"
#include "core/text.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr size_t kMaxShown = 10;

std::string show(std::string_view dtype, const std::vector<uint64_t>& shape) {
  std::string out = concat(dtype, " [");
  for (size_t i = 0; i < shape.size(); ++i) out += concat(i ? ", " : "", shape[i]);
  return out + ']';
}

std::string show(const ExpectedTensor& tensor) {
  std::string out;
  for (const TensorForm& form : tensor.forms) {
    std::string dtypes;
    for (const DType dtype : form.dtypes)
      dtypes += concat(dtypes.empty() ? "" : "|", dtype_name(dtype));
    out += concat(out.empty() ? "" : " or ", show(dtypes, form.shape));
  }
  return out;
}

bool matches(const TensorInfo& tensor, const ExpectedTensor& expected) {
  return std::any_of(expected.forms.begin(), expected.forms.end(), [&](const TensorForm& form) {
    return form.shape == tensor.shape &&
           std::find(form.dtypes.begin(), form.dtypes.end(), tensor.dtype) != form.dtypes.end();
  });
}

/// Differences, of which the first ones are kept as text.
struct Differences {
  std::vector<std::string> shown;
  size_t num_missing = 0, num_mismatched = 0, num_unknown = 0;

  size_t count() const { return num_missing + num_mismatched + num_unknown; }
  /// `text` is only called for a difference that is shown: a hostile config has millions.
  template <typename Text>
  void add(size_t& counter, const Text& text) {
    ++counter;
    if (shown.size() < kMaxShown) shown.push_back(text());
  }
};

[[noreturn]] void fail_with(const Differences& differences, const char* where) {
  const ErrorCode code = differences.num_missing      ? ErrorCode::missing_tensor
                         : differences.num_mismatched ? ErrorCode::shape_mismatch
                                                      : ErrorCode::bad_format;
  std::string text = concat("the tensors are not those of config.json: ", differences.num_missing,
                            " missing, ", differences.num_mismatched, " of another form, ",
                            differences.num_unknown, " unknown");
  for (const std::string& line : differences.shown) text += "; " + line;
  if (differences.count() > differences.shown.size())
    text += concat("; and ", differences.count() - differences.shown.size(), " more");
  fail(code, where, text);
}

}  // namespace

void check_tensors(const Checkpoint& checkpoint, std::vector<ExpectedTensor> expected,
                   const char* where) {
  std::sort(expected.begin(), expected.end(), [](const ExpectedTensor& a, const ExpectedTensor& b) {
    return a.name < b.name;
  });
  Differences differences;
  for (const ExpectedTensor& wanted : expected) {
    const TensorInfo* tensor = checkpoint.find(wanted.name);
    if (!tensor) {
      differences.add(differences.num_missing, [&] {
        return concat("tensor ", printable(wanted.name), ": expected ", show(wanted),
                      ", found none");
      });
    } else if (!matches(*tensor, wanted)) {
      differences.add(differences.num_mismatched, [&] {
        return concat("tensor ", printable(wanted.name), " of ", printable(tensor->file_name),
                      ": expected ", show(wanted), ", got ",
                      show(dtype_name(tensor->dtype), tensor->shape));
      });
    }
  }
  auto wanted = expected.begin();
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    while (wanted != expected.end() && wanted->name < tensor.name) ++wanted;
    const bool known = wanted != expected.end() && wanted->name == tensor.name;
    if (!known && !is_ignored_tensor(tensor.name))
      differences.add(differences.num_unknown, [&] {
        return concat("tensor ", printable(tensor.name), " of ", printable(tensor.file_name),
                      ": expected no such tensor");
      });
  }
  if (differences.count() > 0) fail_with(differences, where);
}

void Checkpoint::validate(const ModelConfig& config) const {
  check_tensors(*this, expected_tensors(config, this), "Checkpoint.validate");
}

}  // namespace mimo_rt
