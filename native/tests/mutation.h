// Damaged variants of a good input, for the fuzz targets: all from one seed, so that every failure can be had again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace margay {

class Mutation {
 public:
  explicit Mutation(uint64_t seed) : random_(seed) {}

  // In [0, limit).
  uint64_t Below(uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }

  // A number at which arithmetic goes wrong, or near one.
  uint64_t Number() {
    static constexpr uint64_t kEdges[] = {0, 1, 63, 64, 127, 255, 1 << 16, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX};
    const uint64_t edge = kEdges[Below(std::size(kEdges))];
    return Below(4) == 0 ? random_() >> Below(64) : edge + Below(3) - 1;
  }

  // One to eight changes: bytes turned, parts cut, doubled or moved, a word of `words` put in.
  std::string Of(std::string text, const std::vector<std::string>& words) {
    for (uint64_t changes = 1 + Below(8); changes > 0; --changes) {
      const size_t at = Below(text.size() + 1);
      const size_t some = std::min<size_t>(text.size() - at, 1 + Below(Below(4) == 0 ? 64 : 4));
      switch (Below(6)) {
        case 0: if (at < text.size()) text[at] = static_cast<char>(random_()); break;
        case 1: if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << Below(8))); break;
        case 2: text.erase(at, some); break;
        case 3: text.insert(at, text.substr(at, some)); break;
        case 4: text.insert(Below(text.size() + 1), text.substr(at, some)); break;
        default: text.replace(at, Below(2) * some, Below(3) == 0 ? std::to_string(Number()) : words[Below(words.size())]);
      }
    }
    return text;
  }

 private:
  std::mt19937_64 random_;
};

}  // namespace margay
