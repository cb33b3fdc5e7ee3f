#pragma once

// What tokenizers and request checks need to know of Unicode, over utf8proc.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace vitrine {

// The offset of the first byte that is not part of valid UTF-8 (overlong
// forms, surrogates and code points above U+10FFFF are not); none when all is.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

// The longest prefix of at most `max_bytes` that ends between code points.
std::string_view Utf8Prefix(std::string_view text, size_t max_bytes);

// Decodes the code point at `*offset` of valid UTF-8 and moves past it.
char32_t NextCodePoint(std::string_view text, size_t* offset);

// BERT's classes, as its reference tokenizer defines them.
bool IsWhitespace(char32_t c);   // space, \t \n \r, category Zs
bool IsControl(char32_t c);      // categories Cc, Cf, Cn, Co but \t \n \r
bool IsPunctuation(char32_t c);  // ASCII symbols too, and categories P*
bool IsCjk(char32_t c);          // the ideograph blocks

}  // namespace vitrine
