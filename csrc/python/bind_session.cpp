#include "bind.h"

#include <mimo_rt/session.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <utility>

namespace mimo_rt::python {
namespace {

using TokenArray = py::array_t<int32_t, py::array::c_style>;

// With a callback it checks for Ctrl-C after every step, so that a KeyboardInterrupt leaves generate() within one step. A
// callback that returns None goes on. Without one the engine need not wait for the host between two rounds; then Ctrl-C
// is for whoever called generate() in another thread, to cancel().
TokenCallback wrap_callback(const py::object& on_token) {
  if (on_token.is_none()) return {};
  return [&on_token](const TokenEvent& event) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    const std::vector<int32_t> ids(event.token_ids.begin(), event.token_ids.end());
    const py::object keep_going = on_token(ids, py::str(event.text.data(), event.text.size()));
    return keep_going.is_none() || keep_going.cast<bool>();
  };
}

GenerateResult generate(Session& session, const std::vector<int32_t>& prompt, const GenerateOptions& options,
                        const py::object& on_token) {
  const TokenCallback callback = wrap_callback(on_token);
  const py::gil_scoped_release release;
  return session.generate(prompt, options, callback);
}

py::array_t<float> to_rows(std::vector<float> values, py::ssize_t num_rows) {
  const py::ssize_t num_cols = static_cast<py::ssize_t>(values.size()) / num_rows;
  auto* owner = new std::vector<float>(std::move(values));
  const py::capsule guard(owner, [](void* p) { delete static_cast<std::vector<float>*>(p); });
  return py::array_t<float>({num_rows, num_cols}, owner->data(), guard);
}

py::array_t<float> logits(Session& session, const TokenArray& tokens, uint32_t step_tokens) {
  if (tokens.ndim() != 1) throw py::value_error("logits: expected a one-dimensional array of token ids");
  std::vector<float> out;
  {
    const std::span<const int32_t> ids(tokens.data(), static_cast<size_t>(tokens.size()));
    const py::gil_scoped_release release;
    session.logits(ids, out, step_tokens);
  }
  return to_rows(std::move(out), tokens.size());
}

py::array_t<float> draft_logits(Session& session, const TokenArray& tokens) {
  if (tokens.ndim() != 1) throw py::value_error("draft_logits: expected a one-dimensional array of token ids");
  std::vector<float> out;
  {
    const std::span<const int32_t> ids(tokens.data(), static_cast<size_t>(tokens.size()));
    const py::gil_scoped_release release;
    session.draft_logits(ids, out);
  }
  return to_rows(std::move(out), 1);
}

void bind_options(py::module_& m) {
  py::class_<TokenBias>(m, "TokenBias", "Added to the logit of a token.")
      .def(py::init<int32_t, float>(), py::arg("token_id"), py::arg("bias"))
      .def_readonly("token_id", &TokenBias::token_id)
      .def_readonly("bias", &TokenBias::bias);
  py::class_<SamplingParams>(m, "SamplingParams", "How a token is chosen; fields as in mimo_rt/sampling.h.")
      .def(py::init(&from_kwargs<SamplingParams>))
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("sample_top_k", &SamplingParams::sample_top_k)
      .def_readwrite("sample_top_p", &SamplingParams::sample_top_p)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("num_logprobs", &SamplingParams::num_logprobs)
      .def_readwrite("want_logprob", &SamplingParams::want_logprob)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias);
  py::class_<DraftOptions> draft(m, "DraftOptions", "How a generation drafts; fields as in mimo_rt/draft.h.");
  py::enum_<DraftOptions::Mode>(draft, "Mode")
      .value("off", DraftOptions::Mode::off)
      .value("fixed", DraftOptions::Mode::fixed)
      .value("adaptive", DraftOptions::Mode::adaptive);
  py::enum_<DraftOptions::Proposal>(draft, "Proposal")
      .value("argmax", DraftOptions::Proposal::argmax)
      .value("sampled", DraftOptions::Proposal::sampled);
  draft.def(py::init(&from_kwargs<DraftOptions>))
      .def_readwrite("mode", &DraftOptions::mode)
      .def_readwrite("num_draft_tokens", &DraftOptions::num_draft_tokens)
      .def_readwrite("proposal", &DraftOptions::proposal);
  py::class_<GenerateOptions>(m, "GenerateOptions", "What ends a generation; fields as in mimo_rt/session.h.")
      .def(py::init(&from_kwargs<GenerateOptions>))
      .def_readwrite("sampling", &GenerateOptions::sampling)
      .def_readwrite("draft", &GenerateOptions::draft)
      .def_readwrite("max_tokens", &GenerateOptions::max_tokens)
      .def_readwrite("min_tokens", &GenerateOptions::min_tokens)
      .def_readwrite("stop_token_ids", &GenerateOptions::stop_token_ids)
      .def_readwrite("ignore_eos", &GenerateOptions::ignore_eos)
      .def_readwrite("stop", &GenerateOptions::stop)
      .def_readwrite("include_stop_str_in_output", &GenerateOptions::include_stop_str_in_output)
      .def_readwrite("want_rounds", &GenerateOptions::want_rounds);
}

void bind_results(py::module_& m) {
  py::class_<TokenLogprob>(m, "TokenLogprob")
      .def_readonly("token_id", &TokenLogprob::token_id)
      .def_readonly("logprob", &TokenLogprob::logprob);
  py::class_<TokenLogprobs>(m, "TokenLogprobs")
      .def_readonly("chosen", &TokenLogprobs::chosen)
      .def_readonly("alternatives", &TokenLogprobs::alternatives);
  py::class_<DraftStats>(m, "DraftStats", "Speculative decoding of one generation; fields as in mimo_rt/stats.h.")
      .def_readonly("num_rounds", &DraftStats::num_rounds)
      .def_readonly("num_drafted_rounds", &DraftStats::num_drafted_rounds)
      .def_readonly("num_draft_tokens", &DraftStats::num_draft_tokens)
      .def_readonly("num_accepted_tokens", &DraftStats::num_accepted_tokens)
      .def_readonly("accepted_at_pos", &DraftStats::accepted_at_pos)
      .def_readonly("drafted_at_pos", &DraftStats::drafted_at_pos)
      .def_readonly("accepted_histogram", &DraftStats::accepted_histogram)
      .def_readonly("width_histogram", &DraftStats::width_histogram)
      .def_property_readonly("acceptance_length", &DraftStats::acceptance_length)
      .def_property_readonly("acceptance_rate", &DraftStats::acceptance_rate);
  py::class_<GenerationStats>(m, "GenerationStats", "Fields as in mimo_rt/stats.h.")
      .def_readonly("num_prompt_tokens", &GenerationStats::num_prompt_tokens)
      .def_readonly("num_cached_tokens", &GenerationStats::num_cached_tokens)
      .def_readonly("num_output_tokens", &GenerationStats::num_output_tokens)
      .def_readonly("num_steps", &GenerationStats::num_steps)
      .def_readonly("ttft_ms", &GenerationStats::ttft_ms)
      .def_readonly("tpot_ms", &GenerationStats::tpot_ms)
      .def_readonly("e2e_ms", &GenerationStats::e2e_ms)
      .def_readonly("prefill_tokens_per_s", &GenerationStats::prefill_tokens_per_s)
      .def_readonly("decode_tokens_per_s", &GenerationStats::decode_tokens_per_s)
      .def_readonly("weight_bytes_per_step", &GenerationStats::weight_bytes_per_step)
      .def_readonly("decode_gbs", &GenerationStats::decode_gbs)
      .def_readonly("bandwidth_fraction", &GenerationStats::bandwidth_fraction)
      .def_readonly("draft", &GenerationStats::draft);
  py::class_<RoundStats>(m, "RoundStats", "One round of draft, verify and accept; fields as in mimo_rt/stats.h.")
      .def_readonly("ns", &RoundStats::ns)
      .def_readonly("num_rows", &RoundStats::num_rows)
      .def_readonly("num_drafts", &RoundStats::num_drafts)
      .def_readonly("num_tokens", &RoundStats::num_tokens)
      .def_readonly("num_active_experts", &RoundStats::num_active_experts);
  py::class_<GenerateResult>(m, "GenerateResult")
      .def_readonly("token_ids", &GenerateResult::token_ids)
      .def_readonly("text", &GenerateResult::text)
      .def_property_readonly("finish_reason",
                             [](const GenerateResult& r) { return finish_reason_name(r.finish_reason); })
      .def_readonly("stop_token_id", &GenerateResult::stop_token_id)
      .def_readonly("stop_string", &GenerateResult::stop_string)
      .def_readonly("logprobs", &GenerateResult::logprobs)
      .def_readonly("rounds", &GenerateResult::rounds)
      .def_readonly("stats", &GenerateResult::stats);
}

}  // namespace

void bind_session(py::module_& m) {
  bind_options(m);
  bind_results(m);
  py::class_<Session>(m, "Session", "One conversation: KV cache, position, generation loop.")
      .def(py::init([](std::shared_ptr<Engine> engine, uint32_t max_context, uint64_t sequence_id) {
             return Session(std::move(engine), {.max_context = max_context, .sequence_id = sequence_id});
           }),
           py::arg("engine"), py::arg("max_context") = 0, py::arg("sequence_id") = 0)
      .def("load_vocabulary", &Session::load_vocabulary, py::arg("tokenizer_json"))
      .def("generate", &generate, py::arg("prompt"), py::arg("options") = GenerateOptions{},
           py::arg("on_token") = py::none())
      .def("logits", &logits, py::arg("tokens"), py::arg("step_tokens") = 0, "[num_tokens, vocab_size] float32")
      .def("draft_logits", &draft_logits, py::arg("tokens"), "[1, (block_size - 1) * vocab_size] float32")
      .def("cancel", &Session::cancel)
      .def("reset", &Session::reset)
      .def_property_readonly("num_cached_tokens", &Session::num_cached_tokens)
      .def_property_readonly("max_context", &Session::max_context)
      .def_property_readonly("kv_bytes", &Session::kv_bytes);
}

}  // namespace mimo_rt::python
