// Follows every buffer through an epoch: who wrote each part last, and who has read it since.
//
// Tasks come in an order in which the epoch can run. For each access the tasks that conflict with it and came earlier
// must be certain to have completed (by the clock); pairs of conflicting tasks are thereby ordered in every run. In
// addition each read must find exactly the value that the model's data flow asks for (`source_stage`), so nothing is
// missing, stale, written twice or overwritten early.
//
// What a tag edge brings is not in memory: its readers must each wait for it, whatever the clock says. Who overwrites it
// must come after its readers like everywhere; with that no reader finds a newer tag than its own.
#pragma once

#include "plan/accesses.h"
#include "plan/epoch_order.h"
#include "plan/kinds.h"
#include "plan/row_sets.h"

#include <array>
#include <map>
#include <memory>
#include <vector>

namespace mimo_rt {

class DataFlow {
 public:
  explicit DataFlow(const Plan& plan);

  /// Accounts for one task. @throws Error{plan_invalid}
  void visit(uint32_t worker_idx, uint32_t task_idx, const Clock& before);
  /// Everything that leaves the step (logits, samples, KV rows) must have been written. @throws Error{plan_invalid}
  void finish() const;

  uint64_t num_accesses() const { return num_accesses_; }
  uint64_t num_ordered_pairs() const { return num_ordered_pairs_; }

 private:
  static constexpr uint32_t kNobody = 0xffffffffu;
  struct Piece {
    RowSet rows;
    uint32_t writer_worker = kNobody, writer_task = 0;
    Stage stage;             ///< of the writer
    Clock readers;  ///< [num_workers] 1 + the last task that read it since; empty: nobody did
  };
  /// A range of columns; its pieces split all rows among them.
  struct Slab {
    uint32_t col_end;
    std::vector<Piece> pieces;
    Clock readers;  ///< those that read all pieces; counts for each of them
  };
  /// A buffer seen in one row domain.
  struct View {
    uint32_t cols = 0;
    std::map<uint32_t, Slab> slabs;  ///< by first column; they split all columns among them
    Clock last_access;               ///< [num_workers] 1 + the last task that touched it
  };
  struct Buffer {
    std::array<std::unique_ptr<View>, kNumRowDomains> views;
  };
  /// The task at hand and the region that it touches.
  struct Actor {
    uint32_t worker_idx, task_idx;
    const Task& task;
    const Clock& before;
  };

  View& view(const Access& access);
  RowSets& rows(const Access& access) { return row_sets_[static_cast<size_t>(access.domain)]; }
  void check_bounds(const Actor& actor, const Access& access) const;
  void read(const Actor& actor, const Access& access);
  void read_earlier(const Actor& actor, const Access& access);  ///< all rows
  void write(const Actor& actor, const Access& access);
  /// That the writer has finished before the reader starts; or, if its words are tagged, that the reader waits for them.
  void check_arrival(const Actor& actor, const Access& access, const Piece& piece) const;
  void mark_read(Clock& readers, const Actor& actor) const;
  void check_writer(const Actor& actor, const Access& access, const Piece& piece);
  void check_readers(const Actor& actor, const Access& access, const Clock& readers);
  static void push_down_readers(Slab& slab);
  void claim_from_other_views(const Actor& actor, const Access& access);
  void reset(View& view) const;
  static std::map<uint32_t, Slab>::iterator split(View& view, uint32_t col);
  std::string region(const Access& access) const;

  const Plan& plan_;
  const AccessModel model_;
  std::vector<RowSets> row_sets_;  ///< [kNumRowDomains]
  std::vector<Buffer> buffers_;
  std::vector<Access> accesses_;   ///< of the task at hand
  uint64_t num_accesses_ = 0, num_ordered_pairs_ = 0;
};

}  // namespace mimo_rt
