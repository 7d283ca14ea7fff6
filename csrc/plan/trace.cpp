#include "plan/trace.h"

#include "core/checks.h"
#include "plan/kinds.h"
#include "plan/task.h"

#include <algorithm>
#include <locale>
#include <sstream>

namespace mimo_rt {
namespace {

/// Writes the events of a trace; times in microseconds with three digits.
class TraceWriter {
 public:
  TraceWriter() {
    out_.imbue(std::locale::classic());
    out_ << "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[";
  }

  void name(const char* what, uint32_t pid, uint32_t tid, const std::string& text) {
    begin_event();
    out_ << "{\"ph\":\"M\",\"name\":\"" << what << "\",\"pid\":" << pid << ",\"tid\":" << tid
         << ",\"args\":{\"name\":\"" << text << "\"}}";
  }

  void slice(uint32_t pid, const std::string& text, const char* category, const TaskTrace& where, uint64_t begin_ns,
             uint64_t end_ns, uint64_t weights_ns = 0) {
    begin_event();
    out_ << "{\"ph\":\"X\",\"name\":\"" << text << "\",\"cat\":\"" << category << "\",\"pid\":" << pid
         << ",\"tid\":" << where.worker_idx << ",\"ts\":";
    microseconds(begin_ns);
    out_ << ",\"dur\":";
    microseconds(end_ns - begin_ns);
    out_ << ",\"args\":{\"task\":" << where.task_idx;
    if (weights_ns) {
      out_ << ",\"weights_us\":";
      microseconds(weights_ns);
    }
    out_ << "}}";
  }

  std::string finish() {
    out_ << "\n]}\n";
    return out_.str();
  }

 private:
  void begin_event() {
    out_ << (is_first_ ? "\n" : ",\n");
    is_first_ = false;
  }
  void microseconds(uint64_t ns) {
    const std::string rest = std::to_string(ns % 1000);
    out_ << ns / 1000 << '.' << std::string(3 - rest.size(), '0') << rest;
  }

  std::ostringstream out_;
  bool is_first_ = true;
};

std::string wait_name(const Plan& plan, const Task& task) {
  std::string text = "wait";
  for (uint32_t i = 0; i < task.num_waits; ++i)
    text += (i ? ", " : ": ") + plan.counters()[task.waits[i].counter].name;
  return text;
}

void add_process(TraceWriter& writer, const Plan& plan, uint32_t pid, const char* name,
                 const std::vector<TaskTrace>& records) {
  writer.name("process_name", pid, 0, name);
  for (uint32_t w = 0; w < plan.num_workers(); ++w) writer.name("thread_name", pid, w, concat("worker ", w));
  for (const TaskTrace& record : records) {
    const Task& task = plan.tasks(record.worker_idx)[record.task_idx];
    const uint64_t fetched_ns = record.wait_begin_ns + record.fetch_ns;
    if (record.fetch_ns) writer.slice(pid, "fetch", "fetch", record, record.wait_begin_ns, fetched_ns);
    if (record.begin_ns > fetched_ns)
      writer.slice(pid, wait_name(plan, task), "wait", record, fetched_ns, record.begin_ns);
    writer.slice(pid, stage_name(stage_of(task)), task_kind_name(task.kind), record, record.begin_ns, record.end_ns,
                 record.weights_ns);
  }
}

}  // namespace

std::vector<TaskTrace> predict_trace(const Plan& plan) {
  std::vector<uint32_t> next(plan.num_workers(), 0), count(plan.counters().size(), 0);
  std::vector<uint64_t> free_ns(plan.num_workers(), 0), full_ns(plan.counters().size(), 0);
  std::vector<TaskTrace> records;
  for (bool moved = true; moved;) {
    moved = false;
    for (uint32_t w = 0; w < plan.num_workers(); ++w) {
      for (; next[w] < plan.tasks(w).size(); ++next[w]) {
        const Task& task = plan.tasks(w)[next[w]];
        uint64_t begin = free_ns[w];
        bool ready = true;
        for (uint32_t i = 0; i < task.num_waits; ++i) {
          const Wait& wait = task.waits[i];
          ready &= count[wait.counter] >= wait.value;
          if (wait.value) begin = std::max(begin, full_ns[wait.counter]);
        }
        if (!ready) break;
        records.push_back({w, next[w], free_ns[w], begin, begin + task.cost_ns});
        free_ns[w] = begin + task.cost_ns;
        moved = true;
        if (task.signal_counter == kNoCounter) continue;
        ++count[task.signal_counter];
        full_ns[task.signal_counter] = std::max(full_ns[task.signal_counter], free_ns[w]);
      }
    }
  }
  return records;
}

std::string chrome_trace_json(const Plan& plan, const std::vector<TaskTrace>& measured) {
  for (const TaskTrace& record : measured)
    MIMO_RT_CHECK(record.worker_idx < plan.num_workers() && record.task_idx < plan.tasks(record.worker_idx).size() &&
                      record.wait_begin_ns <= record.begin_ns && record.begin_ns <= record.end_ns &&
                      record.fetch_ns <= record.begin_ns - record.wait_begin_ns &&
                      record.weights_ns <= record.end_ns - record.begin_ns,
                  invalid_argument, "trace", "expected ascending times of a task of the plan, got worker ",
                  record.worker_idx, " task ", record.task_idx);
  TraceWriter writer;
  add_process(writer, plan, 0, "predicted", predict_trace(plan));
  if (!measured.empty()) add_process(writer, plan, 1, "measured", measured);
  return writer.finish();
}

}  // namespace mimo_rt
