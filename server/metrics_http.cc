#include "server/metrics_http.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "prometheus/metric_family.h"
#include "prometheus/text_serializer.h"

namespace vitrine {
namespace {

constexpr size_t kMaxRequestBytes = 16 << 10;
constexpr absl::Duration kRequestTimeout = absl::Seconds(2);
constexpr absl::Duration kResponseTimeout = absl::Seconds(10);
constexpr int kBacklog = 16;

constexpr char kPlain[] = "text/plain; charset=utf-8";
constexpr char kExposition[] = "text/plain; version=0.0.4; charset=utf-8";

// A scraper's connection, and what ends the wait for it.
struct Connection {
  int fd;
  int stop;  // an eventfd, readable when the server stops
};

// Waits for `events` until `deadline`; false when that passed, or at a stop.
bool WaitFor(const Connection& connection, short events, absl::Time deadline) {
  while (true) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return false;
    pollfd entries[2] = {{connection.fd, events, 0},
                         {connection.stop, POLLIN, 0}};
    const int n =
        poll(entries, 2, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (n > 0) return entries[1].revents == 0;
    if (n < 0 && errno != EINTR) return false;
  }
}

// Reads up to the end of the headers. False: gone, too slow or too long.
bool ReadRequest(const Connection& connection, std::string* request) {
  const absl::Time deadline = absl::Now() + kRequestTimeout;
  char chunk[4096];
  while (!absl::StrContains(*request, "\r\n\r\n")) {
    if (request->size() > kMaxRequestBytes ||
        !WaitFor(connection, POLLIN, deadline)) {
      return false;
    }
    const ssize_t n = recv(connection.fd, chunk, sizeof(chunk), MSG_DONTWAIT);
    if (n == 0) return false;
    if (n < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return false;
    }
    request->append(chunk, n);
  }
  return true;
}

void SendAll(const Connection& connection, absl::string_view data) {
  const absl::Time deadline = absl::Now() + kResponseTimeout;
  while (!data.empty()) {
    if (!WaitFor(connection, POLLOUT, deadline)) return;
    const ssize_t n = send(connection.fd, data.data(), data.size(),
                           MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return;
    }
    data.remove_prefix(n);
  }
}

class MetricsHttpImpl : public MetricsHttp {
 public:
  MetricsHttpImpl(
      int listener, int port,
      std::vector<std::shared_ptr<prometheus::Collectable>> collectables)
      : listener_(listener),
        stop_(eventfd(0, EFD_CLOEXEC)),
        port_(port),
        collectables_(std::move(collectables)),
        thread_([this] {
          pthread_setname_np(pthread_self(), "metrics-http");
          Serve();
        }) {}

  ~MetricsHttpImpl() override {
    (void)eventfd_write(stop_, 1);
    thread_.join();
    close(listener_);
    close(stop_);
  }

  int port() const override { return port_; }

 private:
  void Serve() {
    while (true) {
      pollfd entries[2] = {{listener_, POLLIN, 0}, {stop_, POLLIN, 0}};
      if (poll(entries, 2, -1) < 0) continue;
      if (entries[1].revents != 0) return;
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) {
        // Out of descriptors, say: not a reason to spin.
        if (errno != EINTR && errno != ECONNABORTED) {
          absl::SleepFor(absl::Milliseconds(50));
        }
        continue;
      }
      std::string request;
      const Connection connection = {fd, stop_};
      if (ReadRequest(connection, &request)) {
        SendAll(connection, Answer(request));
      }
      close(fd);
    }
  }

  std::string Answer(absl::string_view request) const {
    const absl::string_view line = request.substr(0, request.find("\r\n"));
    const size_t space = line.find(' ');
    const absl::string_view method = line.substr(0, space);
    absl::string_view path;
    if (space != absl::string_view::npos) {
      path = line.substr(space + 1);
      path = path.substr(0, path.find_first_of(" ?"));
    }
    const bool head = method == "HEAD";
    if (method != "GET" && !head) {
      return Respond("405 Method Not Allowed", kPlain, "GET only\n", false);
    }
    if (path != "/metrics") {
      return Respond("404 Not Found", kPlain, "see /metrics\n", head);
    }
    std::vector<prometheus::MetricFamily> families;
    for (const auto& collectable : collectables_) {
      std::vector<prometheus::MetricFamily> more = collectable->Collect();
      std::move(more.begin(), more.end(), std::back_inserter(families));
    }
    return Respond("200 OK", kExposition,
                   prometheus::TextSerializer().Serialize(families), head);
  }

  static std::string Respond(absl::string_view status, absl::string_view type,
                             absl::string_view body, bool head) {
    return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: ", type,
                        "\r\nContent-Length: ", body.size(),
                        "\r\nConnection: close\r\n\r\n",
                        head ? absl::string_view() : body);
  }

  const int listener_;
  const int stop_;
  const int port_;
  const std::vector<std::shared_ptr<prometheus::Collectable>> collectables_;
  std::thread thread_;  // last: it uses the rest
};

int BoundPort(int fd) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return 0;
  }
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsHttp>> MetricsHttp::Start(
    const HostPort& address,
    std::vector<std::shared_ptr<prometheus::Collectable>> collectables) {
  const std::string name = absl::StrCat(address.host, ":", address.port);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int resolved = getaddrinfo(
      address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (resolved != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot listen on ", name, " for metrics: ", gai_strerror(resolved)));
  }
  int error = 0;
  int fd = -1;
  for (const addrinfo* a = found; a != nullptr && fd < 0; a = a->ai_next) {
    fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, kBacklog) != 0) {
      error = errno;
      close(fd);
      fd = -1;
    }
  }
  freeaddrinfo(found);
  if (fd < 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot listen on ", name, " for metrics: ", std::strerror(error)));
  }
  return std::make_unique<MetricsHttpImpl>(fd, BoundPort(fd),
                                           std::move(collectables));
}

}  // namespace vitrine
