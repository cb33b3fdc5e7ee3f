#pragma once

// SHA-256 of bytes as they come. Free of Abseil, for those who must be: see
// model/tokenizer.h.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace vitrine {

// One thread at a time.
class Sha256Stream {
 public:
  using Digest = std::array<unsigned char, 32>;

  Sha256Stream();
  ~Sha256Stream();
  Sha256Stream(const Sha256Stream&) = delete;
  Sha256Stream& operator=(const Sha256Stream&) = delete;

  void Add(std::string_view data);
  // The length goes first, so that fields in a row are not taken for others
  // of the same bytes.
  void AddField(std::string_view data);
  void AddNumber(int64_t number);

  // Ends the stream.
  Digest Finish();
  std::string FinishHex();  // lower-case

 private:
  evp_md_ctx_st* const context_;
};

}  // namespace vitrine
