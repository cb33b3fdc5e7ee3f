#pragma once

#include <cstdint>
#include <vector>

namespace at {
class Tensor;
}

namespace vitrine {

// Attention within each sequence of a packed batch on the CPU, with a gradient.
// `query_key_value` is (tokens, 3 * hidden), fp32 or bf16; sequence s is the
// rows from offsets[s] to offsets[s + 1]. Returns the heads' contexts side by
// side, (tokens, hidden). One thread; any.
at::Tensor PackedAttention(const at::Tensor& query_key_value,
                           const std::vector<int32_t>& offsets, int64_t heads);

}  // namespace vitrine
