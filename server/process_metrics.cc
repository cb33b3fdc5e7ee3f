#include "server/process_metrics.h"

#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "prometheus/metric_family.h"

namespace vitrine {
namespace {

constexpr int64_t kMaxProcFileBytes = 1 << 20;

void Add(const char* name, const char* help, prometheus::MetricType type,
         double value, std::vector<prometheus::MetricFamily>* out) {
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  family.metric.push_back(std::move(metric));
  out->push_back(std::move(family));
}

// The fields of /proc/self/stat after the command's name, which may hold
// anything; [0] is field 3, the state. Empty where it cannot be read.
std::vector<std::string> StatFields() {
  const absl::StatusOr<std::string> text =
      ReadFile("/proc/self/stat", kMaxProcFileBytes);
  if (!text.ok()) return {};
  const size_t end = text->rfind(") ");
  if (end == std::string::npos) return {};
  return absl::StrSplit(absl::string_view(*text).substr(end + 2), ' ');
}

double BootTimeSeconds() {
  const absl::StatusOr<std::string> text =
      ReadFile("/proc/stat", kMaxProcFileBytes);
  if (!text.ok()) return 0;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    double seconds = 0;
    if (absl::ConsumePrefix(&line, "btime ") &&
        absl::SimpleAtod(line, &seconds)) {
      return seconds;
    }
  }
  return 0;
}

class ProcessMetrics : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    using prometheus::MetricType;
    std::vector<prometheus::MetricFamily> out;
    // proc(5): start time is field 22, virtual bytes 23, resident pages 24.
    const std::vector<std::string> fields = StatFields();
    double start_ticks = 0, virtual_bytes = 0, resident_pages = 0;
    if (fields.size() > 21) {
      (void)absl::SimpleAtod(fields[19], &start_ticks);
      (void)absl::SimpleAtod(fields[20], &virtual_bytes);
      (void)absl::SimpleAtod(fields[21], &resident_pages);
    }
    struct rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& t) {
      return t.tv_sec + t.tv_usec * 1e-6;
    };
    Add("process_cpu_seconds_total", "User and system CPU time.",
        MetricType::Counter, seconds(usage.ru_utime) + seconds(usage.ru_stime),
        &out);
    Add("process_resident_memory_bytes", "Resident memory.", MetricType::Gauge,
        resident_pages * sysconf(_SC_PAGESIZE), &out);
    Add("process_virtual_memory_bytes", "Virtual memory.", MetricType::Gauge,
        virtual_bytes, &out);
    Add("process_start_time_seconds", "When the process started, Unix time.",
        MetricType::Gauge,
        BootTimeSeconds() + start_ticks / sysconf(_SC_CLK_TCK), &out);
    const absl::StatusOr<std::vector<std::string>> fds =
        ListFolder("/proc/self/fd");
    Add("process_open_fds", "Open file descriptors.", MetricType::Gauge,
        fds.ok() ? static_cast<double>(fds->size()) : 0, &out);
    struct rlimit limit = {};
    getrlimit(RLIMIT_NOFILE, &limit);
    Add("process_max_fds", "The most file descriptors that may be open.",
        MetricType::Gauge, static_cast<double>(limit.rlim_cur), &out);
    return out;
  }
};

}  // namespace

std::shared_ptr<prometheus::Collectable> NewProcessMetrics() {
  return std::make_shared<ProcessMetrics>();
}

}  // namespace vitrine
