#include "model/unicode.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace vitrine {
namespace {

using std::string_literals::operator""s;

TEST(Unicode, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8(""), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("plain text, longer than eight bytes"),
            std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("null \0 é 中 😀 \xF4\x8F\xBF\xBF"s), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("12345678\xFF"), 8);
  EXPECT_EQ(FindInvalidUtf8("é\x80"), 2);  // a lone continuation byte
}

TEST(Unicode, RefusesWhatTheStandardRefuses) {
  const std::vector<std::string> bad = {
      "\xC0\x80",          // overlong null
      "\xC1\xBF",          // overlong
      "\xE0\x9F\xBF",      // overlong
      "\xF0\x8F\xBF\xBF",  // overlong
      "\xED\xA0\x80",      // a surrogate
      "\xF4\x90\x80\x80",  // above U+10FFFF
      "\xF5\x80\x80\x80",
      "\xFE",
      "\xE4\xB8",      // cut
      "\xF0\x9F\x98",  // cut
      "\xE4\xB8"
      "a",
  };
  for (const std::string& bytes : bad) {
    EXPECT_EQ(FindInvalidUtf8("ab" + bytes), 2) << bytes;
    // After a full step of eight bytes too.
    EXPECT_EQ(FindInvalidUtf8("12345678" + bytes), 8) << bytes;
  }
}

TEST(Unicode, EveryCodePointSurvivesEncodingAndDecoding) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    char bytes[4];
    const std::string_view text(bytes, EncodeUtf8(c, bytes));
    ASSERT_EQ(FindInvalidUtf8(text), std::nullopt) << std::hex << +c;
    size_t offset = 0;
    ASSERT_EQ(NextCodePoint(text, &offset), c);
    ASSERT_EQ(offset, text.size());
    // No cut of it is valid, and none is made.
    for (size_t size = 1; size < text.size(); ++size) {
      ASSERT_EQ(FindInvalidUtf8(text.substr(0, size)), 0);
      ASSERT_EQ(Utf8Prefix(text, size), "");
    }
  }
}

TEST(Unicode, DecodesInvalidBytesOneByOne) {
  const std::string_view text = "\xE4\xB8";
  size_t offset = 0;
  EXPECT_EQ(NextCodePoint(text, &offset), 0xFFFD);
  EXPECT_EQ(offset, 1);
  EXPECT_EQ(NextCodePoint(text, &offset), 0xFFFD);
  EXPECT_EQ(offset, 2);
}

TEST(Unicode, PrefixesEndBetweenCodePoints) {
  const std::string_view text = "aé中😀";  // 1 + 2 + 3 + 4 bytes
  const size_t want[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10};
  for (size_t i = 0; i < std::size(want); ++i) {
    EXPECT_EQ(Utf8Prefix(text, i).size(), want[i]) << i;
  }
}

TEST(Unicode, ClassesAreBerts) {
  for (const char32_t c : U" \t\n\r\u00A0\u2003\u2028\u2029\u3000"s) {
    EXPECT_EQ(IsWhitespace(c), c != 0) << std::hex << +c;
  }
  for (const char32_t c : {0x00, 0x0B, 0x7F, 0x85, 0xAD, 0x200B, 0x200D, 0xE000,
                           0xFEFF, 0x10FFFD}) {
    EXPECT_TRUE(IsControl(c)) << std::hex << +c;
    EXPECT_FALSE(IsWhitespace(c)) << std::hex << +c;
  }
  // Unassigned code points and non-characters are kept.
  for (const char32_t c : {0x09, 0x0A, 0x0D, 0x20, 0x41, 0x378, 0xFDD0}) {
    EXPECT_FALSE(IsControl(c)) << std::hex << +c;
  }
  for (const char c : "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"s) {
    EXPECT_TRUE(IsPunctuation(c)) << c;
  }
  for (const char32_t c : {0xA1, 0xB7, 0x2014, 0x3002, 0xFF01}) {
    EXPECT_TRUE(IsPunctuation(c)) << std::hex << +c;
  }
  for (const char32_t c : {0x30, 0x41, 0x7A, 0x20, 0xA9, 0x20AC, 0x1F600}) {
    EXPECT_FALSE(IsPunctuation(c)) << std::hex << +c;
  }
  for (const char32_t c : {0x4E00, 0x9FFF, 0x3400, 0xF900, 0x20000, 0x2B820}) {
    EXPECT_TRUE(IsCjk(c)) << std::hex << +c;
  }
  for (const char32_t c : {0x3042, 0x30A2, 0xAC00, 0x3001}) {  // kana, Hangul
    EXPECT_FALSE(IsCjk(c)) << std::hex << +c;
  }
}

TEST(Unicode, DecomposesAndFolds) {
  char32_t parts[kMaxDecomposition];
  EXPECT_EQ(Decompose(U'a', parts), 1);
  ASSERT_EQ(Decompose(U'ệ', parts), 3);  // twice composed
  EXPECT_EQ(std::u32string(parts, 3), U"e\u0323\u0302");
  ASSERT_EQ(Decompose(U'한', parts), 3);
  EXPECT_EQ(std::u32string(parts, 3), U"\u1112\u1161\u11AB");
  EXPECT_EQ(Decompose(0x1F82, parts), 4);
  EXPECT_EQ(Decompose(0xFFFFFFFF, parts), 1);  // not a code point

  char32_t lower[2];
  ASSERT_EQ(LowerCase(U'İ', lower), 2);
  EXPECT_EQ(std::u32string(lower, 2), U"i\u0307");
  ASSERT_EQ(LowerCase(U'Σ', lower), 1);
  EXPECT_EQ(lower[0], U'σ');
  ASSERT_EQ(LowerCase(U'ß', lower), 1);
  EXPECT_EQ(lower[0], U'ß');
}

}  // namespace
}  // namespace vitrine
