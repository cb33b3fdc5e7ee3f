#include "base/sha256.h"

#include <openssl/evp.h>

namespace vitrine {
namespace {

// Looked up once: what EVP_sha256() does at every use costs more than the
// digest of a short text. Never freed; threads may digest until the end.
const EVP_MD* Algorithm() {
  static const EVP_MD* const algorithm =
      EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return algorithm;
}

}  // namespace

Sha256Stream::Sha256Stream() : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(context_, Algorithm(), nullptr);
}

Sha256Stream::~Sha256Stream() { EVP_MD_CTX_free(context_); }

void Sha256Stream::Add(std::string_view data) {
  EVP_DigestUpdate(context_, data.data(), data.size());
}

void Sha256Stream::AddField(std::string_view data) {
  AddNumber(static_cast<int64_t>(data.size()));
  Add(data);
}

void Sha256Stream::AddNumber(int64_t number) {
  Add({reinterpret_cast<const char*>(&number), sizeof(number)});
}

Sha256Stream::Digest Sha256Stream::Finish() {
  Digest digest;
  EVP_DigestFinal_ex(context_, digest.data(), nullptr);
  return digest;
}

std::string Sha256Stream::FinishHex() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const unsigned char byte : Finish()) {
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

}  // namespace vitrine
