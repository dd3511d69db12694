#include <unistd.h>

#include <array>
#include <fstream>
#include <string>

#include "transport/kv_transfer.h"

namespace margay {
namespace {

std::string LinkText(const char* path) {
  std::array<char, 64> text{};
  const ssize_t length = readlink(path, text.data(), text.size());
  return length > 0 ? std::string(text.data(), static_cast<size_t>(length)) : "";
}

}  // namespace

// Abstract sockets are seen within one network namespace, and a pool is passed only between processes of one user.
std::string HostKey() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  if (boot.empty()) {
    std::array<char, 256> name{};
    gethostname(name.data(), name.size() - 1);
    boot = name.data();
  }
  return boot + "/" + LinkText("/proc/self/ns/net") + "/" + std::to_string(geteuid());
}

}  // namespace margay
