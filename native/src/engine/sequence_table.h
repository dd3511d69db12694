// Owns the sequences of an engine by slot.
//
//   free slot -> taken (generation g) -> retired (handles of g are void) -> free slot (generation g + 1)
//
// S1 a handle finds its sequence only until that is retired, and no other one ever
// S2 a slot is taken again only after its sequence is gone
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/sequence.h"

namespace margay {

class SequenceTable {
 public:
  explicit SequenceTable(int slots) : slots_(static_cast<size_t>(slots)), generations_(slots_.size(), 1) {}

  // Lowest free slot, or -1.
  int FreeSlot() const {
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
      if (slots_[slot] == nullptr) return static_cast<int>(slot);
    }
    return -1;
  }

  // The handle a sequence in this free slot will have.
  SequenceRef Next(int slot) const { return {slot, generations_[static_cast<size_t>(slot)]}; }

  void Put(std::unique_ptr<Sequence> sequence) {
    const auto slot = static_cast<size_t>(sequence->ref.slot);
    slots_[slot] = std::move(sequence);
    ++taken_;
  }

  // Null when the handle is stale.
  Sequence* Find(SequenceRef ref) const {
    Sequence* sequence = FindRetired(ref);
    return sequence != nullptr && !sequence->closing ? sequence : nullptr;
  }

  // Also finds a sequence that was retired and is not gone.
  Sequence* FindRetired(SequenceRef ref) const {
    if (ref.slot < 0 || static_cast<size_t>(ref.slot) >= slots_.size()) return nullptr;
    Sequence* sequence = slots_[static_cast<size_t>(ref.slot)].get();
    return sequence != nullptr && sequence->ref.generation == ref.generation ? sequence : nullptr;
  }

  void Retire(Sequence* sequence, bool keep) {
    sequence->closing = true;
    sequence->keep = keep;
    ++generations_[static_cast<size_t>(sequence->ref.slot)];
  }

  void Remove(Sequence* sequence) {
    slots_[static_cast<size_t>(sequence->ref.slot)].reset();
    --taken_;
  }

  int taken() const { return taken_; }
  int slots() const { return static_cast<int>(slots_.size()); }
  Sequence* At(int slot) const { return slots_[static_cast<size_t>(slot)].get(); }

 private:
  std::vector<std::unique_ptr<Sequence>> slots_;
  std::vector<int32_t> generations_;
  int taken_ = 0;
};

}  // namespace margay
