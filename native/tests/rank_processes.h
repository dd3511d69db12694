// A group whose members are processes: children of the test, each with an endpoint of its own, who tell what they found
// over a pipe.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "comm/endpoint.h"
#include "exchange_group.h"

namespace margay {

inline constexpr int kRankPatienceMs = 60'000;

class RankProcesses {
 public:
  // What member `self` does; returns what is wrong, or nothing. The spec has the ports, and `self`.
  using Body = std::function<std::string(const GroupSpec& spec, ExchangeEndpoint* endpoint)>;

  RankProcesses(const GroupSpec& spec, const Body& body) {
    GroupSpec told = spec;
    std::vector<int> to;
    for (size_t self = 0; self < spec.members.size(); ++self) {
      const auto [up_read, up_write] = Pipe();
      const auto [down_read, down_write] = Pipe();
      const pid_t pid = fork();
      if (pid == 0) {
        told.self = static_cast<int>(self);
        signal(SIGPIPE, SIG_DFL);
        RunMember(told, body, down_read, up_write);
      }
      close(up_write);
      close(down_read);
      children_.push_back({pid, up_read, "", false});
      to.push_back(down_write);
    }
    for (size_t self = 0; self < children_.size(); ++self) {
      int port = 0;
      if (read(children_[self].pipe, &port, sizeof port) != sizeof port) std::abort();
      told.members[self].port = port;
    }
    for (const int pipe : to) {
      for (const GroupMember& member : told.members) {
        if (write(pipe, &member.port, sizeof member.port) != sizeof member.port) std::abort();
      }
      close(pipe);
    }
  }
  ~RankProcesses() {
    for (Child& child : children_) {
      if (child.pid <= 0) continue;
      kill(child.pid, SIGKILL);
      waitpid(child.pid, nullptr, 0);
      close(child.pipe);
    }
  }
  RankProcesses(RankProcesses&& other) noexcept : children_(std::move(other.children_)) { other.children_.clear(); }

  pid_t pid(int member) const { return children_[static_cast<size_t>(member)].pid; }
  // Waits for its end; what it found wrong, "ended with ..." when it did not end by itself, or nothing.
  std::string Found(int member) {
    Child& child = children_[static_cast<size_t>(member)];
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(kRankPatienceMs);
    std::string text;
    while (true) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
      pollfd polled{child.pipe, POLLIN, 0};
      if (left <= 0 || poll(&polled, 1, static_cast<int>(left)) == 0) return "member " + std::to_string(member) + " hangs";
      std::array<char, 512> piece;
      const ssize_t got = read(child.pipe, piece.data(), piece.size());
      if (got <= 0) break;
      text.append(piece.data(), static_cast<size_t>(got));
    }
    int status = 0;
    waitpid(std::exchange(child.pid, 0), &status, 0);
    close(child.pipe);
    if (WIFSIGNALED(status)) return "ended with signal " + std::to_string(WTERMSIG(status)) + text;
    if (WEXITSTATUS(status) != 0 && text.empty()) return "ended with " + std::to_string(WEXITSTATUS(status));
    return text.empty() ? "" : "member " + std::to_string(member) + ": " + text;
  }
  // Of all members, the first thing that is wrong.
  std::string Found() {
    std::string first;
    for (size_t member = 0; member < children_.size(); ++member) {
      const std::string found = Found(static_cast<int>(member));
      if (first.empty()) first = found;
    }
    return first;
  }
  // Waits until the member has stopped itself.
  bool Stopped(int member) const {
    int status = 0;
    return waitpid(pid(member), &status, WUNTRACED) == pid(member) && WIFSTOPPED(status);
  }

 private:
  struct Child {
    pid_t pid;
    int pipe;
    std::string text;
    bool done;
  };

  static std::pair<int, int> Pipe() {
    std::array<int, 2> ends{};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) std::abort();
    return {ends[0], ends[1]};
  }

  [[noreturn]] static void RunMember(GroupSpec spec, const Body& body, int down, int up) {
    auto endpoint = ExchangeEndpoint::Open("127.0.0.1", 0);
    const int port = endpoint.ok() ? (*endpoint)->port() : 0;
    if (write(up, &port, sizeof port) != sizeof port) _exit(3);
    for (GroupMember& member : spec.members) {
      if (read(down, &member.port, sizeof member.port) != sizeof member.port) _exit(3);
      member.host = "127.0.0.1";
    }
    std::string found = "no endpoint";
    if (endpoint.ok()) found = body(spec, endpoint->get());
    if (!found.empty() && write(up, found.data(), found.size()) < 0) _exit(3);
    endpoint = Status(Code::kClosed, "");
    // Sanitizers speak at the end of a process.
    exit(found.empty() ? 0 : 1);
  }

  std::vector<Child> children_;
};

}  // namespace margay
