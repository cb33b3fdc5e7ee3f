#include "server/grpc_status.h"

#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/proto_duration.h"
#include "google/rpc/error_details.pb.h"

namespace vitrine {
namespace {

constexpr size_t kMaxMessageBytes = 2048;
constexpr size_t kMaxQuotedBytes = 64;
constexpr absl::string_view kTypePrefix = "type.googleapis.com/";

}  // namespace

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  *info.mutable_retry_delay() = ToProtoDuration(delay);
  status.SetPayload(
      absl::StrCat(kTypePrefix,
                   google::rpc::RetryInfo::descriptor()->full_name()),
      absl::Cord(info.SerializeAsString()));
  return status;
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  // Messages are ours or escaped, hence ASCII: a cut is still UTF-8.
  out.set_message(std::string(status.message().substr(0, kMaxMessageBytes)));
  status.ForEachPayload([&out](absl::string_view url, const absl::Cord& value) {
    google::protobuf::Any* any = out.add_details();
    any->set_type_url(std::string(url));
    any->set_value(std::string(value));
  });
  return out;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rpc = ToRpcStatus(status);
  return grpc::Status(
      static_cast<grpc::StatusCode>(rpc.code()), rpc.message(),
      rpc.details_size() > 0 ? rpc.SerializeAsString() : std::string());
}

std::string Quoted(absl::string_view name) {
  return absl::StrCat("\"", absl::CHexEscape(name.substr(0, kMaxQuotedBytes)),
                      name.size() > kMaxQuotedBytes ? "...\"" : "\"");
}

}  // namespace vitrine
