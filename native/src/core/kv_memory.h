// Where KV rows live: one contiguous pool, laid out [attention][block][kBlockTokens][row_values].
// A page is one block's part of one attention: contiguous, the unit of transfer (architecture, section 5).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace margay {

inline constexpr int kBlockTokens = 64;

enum class KvType : uint8_t { kF32, kBf16 };

struct KvLayout {
  int attentions = 0;   // 2 per logical layer, and the draft layer's
  int row_values = 0;   // kv_lora_rank + qk_rope_head_dim: [latent after norm and scale, k_rope after RoPE]
  KvType type = KvType::kF32;

  bool operator==(const KvLayout&) const = default;
  size_t row_bytes() const { return static_cast<size_t>(row_values) * (type == KvType::kF32 ? 4 : 2); }
  size_t page_bytes() const { return row_bytes() * kBlockTokens; }
  size_t block_bytes() const { return page_bytes() * static_cast<size_t>(attentions); }
  // Told to peers; equal strings mean that pages may be exchanged. For example "mla-f32-a6-w128-b64".
  std::string Spell() const {
    return std::string("mla-") + (type == KvType::kF32 ? "f32" : "bf16") + "-a" + std::to_string(attentions) + "-w" +
           std::to_string(row_values) + "-b" + std::to_string(kBlockTokens);
  }
};

// A view, never an owner.
struct KvMemory {
  std::byte* base = nullptr;
  KvLayout layout;
  int blocks = 0;

  std::byte* page(int attention, int block) const {
    return base + (static_cast<size_t>(attention) * static_cast<size_t>(blocks) + static_cast<size_t>(block)) * layout.page_bytes();
  }
  std::byte* row(int attention, int block, int row) const {
    return page(attention, block) + static_cast<size_t>(row) * layout.row_bytes();
  }
};

}  // namespace margay
