#pragma once

// What tokenizers and request checks need to know of Unicode, over utf8proc,
// whose version of the standard is the one that counts here.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace vitrine {

// The offset of the first byte that is not part of valid UTF-8 (overlong
// forms, surrogates and code points above U+10FFFF are not); none when all is.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

// The longest prefix of at most `max_bytes` that ends between code points.
std::string_view Utf8Prefix(std::string_view text, size_t max_bytes);

// Decodes the code point at `*offset` of valid UTF-8 and moves past it. Bytes
// that are not UTF-8 give U+FFFD, one byte at a time, so that a caller's bug
// cannot read past the end.
char32_t NextCodePoint(std::string_view text, size_t* offset);

// Writes the UTF-8 form, at most 4 bytes, and returns its length.
int EncodeUtf8(char32_t c, char* out);

// BERT's classes. Its implementations differ in places; where they do, these
// follow the Rust `tokenizers` library, which is what serves most models:
// U+2028 and U+2029 are spaces, private-use code points are dropped as control
// characters, unassigned ones are kept (and end up as [UNK]).
bool IsWhitespace(char32_t c);   // \t \n \r, categories Zs, Zl, Zp
bool IsControl(char32_t c);      // categories Cc, Cf, Cs, Co but \t \n \r
bool IsPunctuation(char32_t c);  // ASCII symbols too, and categories P*
bool IsCjk(char32_t c);          // the ideograph blocks

// The longest canonical decomposition of one code point, in code points.
inline constexpr int kMaxDecomposition = 4;

// A code point's full canonical decomposition, itself when it has none.
// Returns its length. Reordering marks across code points is the caller's.
int Decompose(char32_t c, char32_t out[kMaxDecomposition]);

// Category Mn: what accent stripping takes away.
bool IsNonspacingMark(char32_t c);

// Canonical combining class; 0 for all but some marks.
int CombiningClass(char32_t c);

// The lower-case form of one code point without regard to its neighbours, so a
// final capital sigma becomes a plain sigma, as in Rust; 1 or 2 code points
// (2 for U+0130 only). Returns their number.
int LowerCase(char32_t c, char32_t out[2]);

}  // namespace vitrine
