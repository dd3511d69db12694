// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace margay {

class Sha256 {
 public:
  using Digest = std::array<uint8_t, 32>;

  Sha256();
  void Update(const void* data, size_t bytes);
  void Update(std::string_view text) { Update(text.data(), text.size()); }
  // Call once, last.
  Digest Finish();

  static Digest Of(const void* data, size_t bytes);

 private:
  void Block(const uint8_t* block);

  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> pending_{};
  size_t pending_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

// Lower-case hexadecimal.
std::string Hex(const uint8_t* bytes, size_t count);
inline std::string Hex(const Sha256::Digest& digest) { return Hex(digest.data(), digest.size()); }

}  // namespace margay
