#include "comm/socket_lane.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "comm/wait.h"

namespace margay {
namespace {

constexpr int kTurns = 8;  // calls before other lanes have their turn

void AddPiece(std::vector<iovec>* pieces, void* data, size_t bytes) {
  if (bytes == 0) return;
  if (!pieces->empty()) {
    iovec& last = pieces->back();
    if (static_cast<std::byte*>(last.iov_base) + last.iov_len == data) {
      last.iov_len += bytes;
      return;
    }
  }
  pieces->push_back({data, bytes});
}

// Takes `moved` bytes off the front.
void Consume(std::vector<iovec>* pieces, size_t* next, size_t* moved) {
  while (*moved > 0 && *next < pieces->size()) {
    iovec& piece = (*pieces)[*next];
    const size_t some = std::min(*moved, piece.iov_len);
    piece.iov_base = static_cast<std::byte*>(piece.iov_base) + some;
    piece.iov_len -= some;
    *moved -= some;
    if (piece.iov_len == 0) ++*next;
  }
}

}  // namespace

SocketLane::SocketLane(int peer, Fd fd, const Sides& sides, std::function<void()> more_to_send)
    : Lane(sides.theirs), peer_(peer), sides_(sides), more_to_send_(std::move(more_to_send)), fd_(std::move(fd)) {
  const size_t most = static_cast<size_t>(std::max(sides.spec->max_rows, static_cast<int>(sides.layout->results()))) + 2;
  for (Outgoing& outgoing : queue_) outgoing.pieces.reserve(sides.carries ? most : 1);
  missing_.reserve(sides.carries ? most : 1);
  missing_.push_back({&in_, sizeof in_});
}

void SocketLane::Post(ExchangeFrame frame, const std::function<void(std::vector<iovec>*)>& body) {
  frame.from = static_cast<uint16_t>(sides_.spec->self);
  frame.epoch = sides_.spec->epoch;
  frame.Seal();
  bool rest;
  {
    const std::lock_guard lock(send_mutex_);
    if (send_failed_) return;
    // A peer that takes nothing for longer than lock-step allows ends the group by the deadline.
    if (queued_ == kMostQueued) return;
    Outgoing& outgoing = queue_[(first_ + queued_) % kMostQueued];
    ++queued_;
    outgoing.frame = frame;
    outgoing.pieces.clear();
    outgoing.pieces.push_back({&outgoing.frame, sizeof frame});
    if (body) body(&outgoing.pieces);
    if (frame.bytes <= kInline) Flush();
    rest = queued_ > 0;
  }
  if (rest) more_to_send_();
}

void SocketLane::Flush() {
  std::array<iovec, 64> batch;
  while (queued_ > 0) {
    size_t pieces = 0, bytes = 0, piece = piece_;
    for (size_t i = 0; i < queued_ && pieces < batch.size() && bytes < kMostAtOnce; ++i, piece = 0) {
      const std::vector<iovec>& of = queue_[(first_ + i) % kMostQueued].pieces;
      for (; piece < of.size() && pieces < batch.size() && bytes < kMostAtOnce; ++piece) {
        batch[pieces] = of[piece];
        batch[pieces].iov_len = std::min(of[piece].iov_len, kMostAtOnce - bytes);
        bytes += batch[pieces++].iov_len;
      }
    }
    const ssize_t sent = SendPieces(fd_, {batch.data(), pieces});
    if (sent < 0) send_failed_ = true;
    if (sent <= 0) return;
    for (auto moved = static_cast<size_t>(sent); moved > 0;) {
      Outgoing& front = queue_[first_];
      Consume(&front.pieces, &piece_, &moved);
      if (piece_ < front.pieces.size()) break;
      piece_ = 0;
      first_ = (first_ + 1) % kMostQueued;
      --queued_;
    }
    if (static_cast<size_t>(sent) < bytes) return;
  }
}

void SocketLane::Began() {
  if (sides_.carries) Ring();
}

void SocketLane::Ring() {
  const MailboxHead* head = sides_.own.head();
  ExchangeFrame frame;
  frame.kind = FrameKind::kBegin;
  frame.number = head->begun.load(std::memory_order_relaxed);
  frame.value = head->map_version.load(std::memory_order_relaxed);
  Post(frame);
}

void SocketLane::Dispatched(uint32_t number) {
  if (!sides_.carries) return;
  const ListHead head = *sides_.own.list_head(number, peer_);
  const ListEntry* list = sides_.own.list(number, peer_);
  const size_t row_bytes = PayloadBytes(sides_.spec->payload, sides_.spec->hidden);
  ExchangeFrame frame;
  frame.kind = FrameKind::kDispatch;
  frame.number = number;
  frame.layer = head.layer;
  frame.entries = head.entries;
  frame.rows = head.rows;
  frame.bytes = head.entries * sizeof(ListEntry) + head.rows * row_bytes;
  Post(frame, [&](std::vector<iovec>* pieces) {
    AddPiece(pieces, const_cast<ListEntry*>(list), head.entries * sizeof(ListEntry));
    int before = -1;
    for (uint32_t i = 0; i < head.entries; ++i) {
      if (list[i].row != before) AddPiece(pieces, sides_.own.row(number, list[i].row), row_bytes);
      before = list[i].row;
    }
  });
}

void SocketLane::Combined(uint32_t number) {
  if (!sides_.carries) return;
  const ResultHead head = *sides_.own.result_head(peer_);
  const size_t row_bytes = ResultBytes(sides_.spec->payload, sides_.spec->hidden);
  ExchangeFrame frame;
  frame.kind = FrameKind::kCombine;
  frame.number = number;
  frame.rows = head.rows;
  frame.bytes = head.rows * row_bytes;
  Post(frame, [&](std::vector<iovec>* pieces) {
    for (uint32_t i = 0; i < head.rows; ++i) AddPiece(pieces, sides_.own.result(peer_, i), row_bytes);
  });
}

void SocketLane::WaitsLong() {
  if (!sides_.carries) return;
  ExchangeFrame frame;
  frame.kind = FrameKind::kWaits;
  frame.value = sides_.own.head()->waiting.load(std::memory_order_relaxed);
  Post(frame);
}

void SocketLane::Left() {
  ExchangeFrame frame;
  frame.kind = FrameKind::kLeft;
  frame.value = sides_.own.head()->left.load(std::memory_order_relaxed);
  Post(frame);
}

short SocketLane::Events() {
  const std::lock_guard lock(send_mutex_);
  return static_cast<short>(POLLIN | (queued_ > 0 && !send_failed_ ? POLLOUT : 0));
}

bool SocketLane::Sent() {
  const std::lock_guard lock(send_mutex_);
  return queued_ == 0 || send_failed_;
}

void SocketLane::Shut() { shutdown(fd_.get(), SHUT_WR); }

void SocketLane::Discard() {
  std::array<std::byte, 4096> ignored;
  for (int turn = 0; turn < 64 && !over_; ++turn) {
    const ssize_t got = margay::Receive(fd_, ignored);
    if (got == 0) return;
    over_ = got < 0;
  }
}

std::optional<LossCause> SocketLane::Serve(short revents, bool* news) {
  if (over_) return std::nullopt;
  {
    // Where sending fails, receiving tells what was said before.
    const std::lock_guard lock(send_mutex_);
    if (!send_failed_) Flush();
  }
  if ((revents & (POLLIN | POLLHUP | POLLERR)) == 0 || Receive(news)) return std::nullopt;
  over_ = true;
  Shut();  // what is on its way to the peer still arrives
  return fault_.value_or(LossCause::kConnection);
}

bool SocketLane::Fault(LossCause cause) {
  fault_ = cause;
  return false;
}

bool SocketLane::Receive(bool* news) {
  std::array<iovec, 64> batch;
  for (int turn = 0; turn < kTurns; ++turn) {
    size_t pieces = 0, bytes = 0;
    for (size_t i = next_; i < missing_.size() && pieces < batch.size() && bytes < kMostAtOnce; ++i) {
      batch[pieces] = missing_[i];
      batch[pieces].iov_len = std::min(missing_[i].iov_len, kMostAtOnce - bytes);
      bytes += batch[pieces++].iov_len;
    }
    const ssize_t got = ReceivePieces(fd_, {batch.data(), pieces});
    if (got <= 0) return got == 0;
    auto moved = static_cast<size_t>(got);
    Consume(&missing_, &next_, &moved);
    while (next_ == missing_.size()) {
      if (reading_ == Reading::kFrame && !OnFrame()) return false;
      if (reading_ == Reading::kList && next_ == missing_.size() && !OnList()) return false;
      if (reading_ == Reading::kRows && next_ == missing_.size() && !OnWhole(news)) return false;
    }
  }
  return true;
}

// A frame's head is there. Whatever it says is held against what a member in step can say.
bool SocketLane::OnFrame() {
  const MailboxHead* theirs = sides_.theirs.head();
  if (!in_.Sound() || in_.epoch != sides_.spec->epoch || in_.from != peer_) return Fault(LossCause::kMalformed);
  const size_t row_bytes = PayloadBytes(sides_.spec->payload, sides_.spec->hidden);
  const size_t result_bytes = ResultBytes(sides_.spec->payload, sides_.spec->hidden);
  const auto layers_here = sides_.own.head()->dispatched.load(std::memory_order_acquire);
  bool good = false;
  missing_.clear();
  next_ = 0;
  reading_ = Reading::kRows;
  switch (in_.kind) {
    case FrameKind::kBegin:
      good = in_.bytes == 0 && (!sides_.carries || in_.number == theirs->begun.load(std::memory_order_relaxed) + 1);
      break;
    case FrameKind::kDispatch:
      good = sides_.carries && in_.number == theirs->dispatched.load(std::memory_order_relaxed) + 1 &&
             in_.entries <= sides_.layout->list_entries() && in_.rows <= in_.entries && (in_.rows > 0) == (in_.entries > 0) &&
             in_.bytes == in_.entries * sizeof(ListEntry) + in_.rows * row_bytes;
      if (!good) break;
      reading_ = Reading::kList;
      AddPiece(&missing_, sides_.theirs.list(in_.number, sides_.spec->self), in_.entries * sizeof(ListEntry));
      break;
    case FrameKind::kCombine:
      good = sides_.carries && !Reached(theirs->combined.load(std::memory_order_relaxed), in_.number) &&
             Reached(layers_here, in_.number) && in_.rows <= sides_.layout->results() && in_.bytes == in_.rows * result_bytes;
      if (!good) break;
      for (uint32_t i = 0; i < in_.rows; ++i) AddPiece(&missing_, sides_.theirs.result(sides_.spec->self, i), result_bytes);
      break;
    case FrameKind::kWaits:
      good = sides_.carries && in_.bytes == 0;
      break;
    case FrameKind::kLeft:
      good = in_.bytes == 0 && in_.value != 0 && in_.value <= UINT32_MAX;
      break;
  }
  return good || Fault(LossCause::kMalformed);
}

bool SocketLane::OnList() {
  reading_ = Reading::kRows;
  const size_t row_bytes = PayloadBytes(sides_.spec->payload, sides_.spec->hidden);
  const ListEntry* list = sides_.theirs.list(in_.number, sides_.spec->self);
  missing_.clear();
  next_ = 0;
  int before = -1;
  uint32_t rows = 0;
  for (uint32_t i = 0; i < in_.entries; ++i) {
    if (list[i].row == before) continue;
    if (list[i].row < before || list[i].row >= sides_.spec->max_rows) return Fault(LossCause::kMalformed);
    before = list[i].row;
    ++rows;
    AddPiece(&missing_, sides_.theirs.row(in_.number, before), row_bytes);
  }
  return rows == in_.rows || Fault(LossCause::kMalformed);
}

// All of a frame is there: who waits for it may know.
bool SocketLane::OnWhole(bool* news) {
  MailboxHead* theirs = sides_.theirs.head();
  switch (in_.kind) {
    case FrameKind::kBegin:
      *news = true;
      if (!sides_.carries) break;
      theirs->map_version.store(in_.value, std::memory_order_relaxed);
      theirs->begun.store(in_.number, std::memory_order_seq_cst);
      WakeAll(&theirs->begun);
      break;
    case FrameKind::kDispatch:
      *sides_.theirs.list_head(in_.number, sides_.spec->self) = {in_.number, in_.layer, in_.entries, in_.rows};
      theirs->dispatched_ns.store(MonotonicNs(), std::memory_order_relaxed);
      theirs->dispatched.store(in_.number, std::memory_order_release);
      WakeAll(&theirs->dispatched);
      break;
    case FrameKind::kCombine:
      *sides_.theirs.result_head(sides_.spec->self) = {in_.number, in_.rows};
      theirs->combined_ns.store(MonotonicNs(), std::memory_order_relaxed);
      theirs->combined.store(in_.number, std::memory_order_release);
      WakeAll(&theirs->combined);
      break;
    case FrameKind::kWaits:
      theirs->waiting.store(in_.value, std::memory_order_release);
      break;
    case FrameKind::kLeft:
      *news = true;
      if (sides_.carries) theirs->left.store(static_cast<uint32_t>(in_.value), std::memory_order_release);
      break;
  }
  missing_.assign(1, {&in_, sizeof in_});
  next_ = 0;
  reading_ = Reading::kFrame;
  return true;
}

}  // namespace margay
