#include "base/cores.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace musespark {
namespace {

int count_affinity(int online) {
#if defined(__linux__)
  // The mask grows until the kernel's fits: machines with more than 1024 processors exist.
  for (int capacity = 1024; capacity <= 1 << 20; capacity *= 2) {
    cpu_set_t* mask = CPU_ALLOC(capacity);
    if (!mask) break;
    const std::size_t size = CPU_ALLOC_SIZE(capacity);
    CPU_ZERO_S(size, mask);
    const int failed = sched_getaffinity(0, size, mask);
    const int count = failed ? 0 : CPU_COUNT_S(size, mask);
    CPU_FREE(mask);
    if (!failed) return std::max(count, 1);
  }
#endif
  return online;
}

// The first line of a file, or an empty string if there is no such file.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "quota period" in microseconds as cores, 0 for "max", -1 and anything unreadable.
double cores_of(const std::string& quota, const std::string& period) {
  std::istringstream quota_text(quota), period_text(period);
  double quota_us = 0, period_us = 0;
  if (!(quota_text >> quota_us) || !(period_text >> period_us)) return 0;
  return quota_us > 0 && period_us > 0 ? quota_us / period_us : 0;
}

void keep_smaller(double cores, double* least) {
  if (cores > 0 && (*least == 0 || cores < *least)) *least = cores;
}

// A group's quota and those of all groups above it, of which the smallest rules.
void read_group(const std::string& mount, std::string group, bool version2, double* least) {
  while (true) {
    const std::string folder = mount + group + "/";
    if (version2) {
      std::istringstream line(first_line(folder + "cpu.max"));
      std::string quota, period;
      line >> quota >> period;
      keep_smaller(cores_of(quota, period), least);
    } else {
      keep_smaller(cores_of(first_line(folder + "cpu.cfs_quota_us"),
                            first_line(folder + "cpu.cfs_period_us")),
                   least);
    }
    const auto slash = group.rfind('/');
    if (slash == std::string::npos) return;
    group.resize(slash);
  }
}

bool lists_controller(const std::string& controllers, const std::string& name) {
  std::istringstream text(controllers);
  for (std::string one; std::getline(text, one, ',');) {
    if (one == name) return true;
  }
  return false;
}

// Lines of /proc/self/cgroup: "id:controllers:/path", with id 0 and no controllers for version 2.
double read_quota(const std::string& root) {
  double least = 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    if (controllers.empty()) {
      read_group(root + "/sys/fs/cgroup", group, true, &least);
    } else if (lists_controller(controllers, "cpu")) {
      for (const char* mount : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"}) {
        read_group(root + mount, group, false, &least);
      }
    }
  }
  return least;
}

}  // namespace

CoreCount count_cores(const std::string& root) {
  CoreCount cores;
  cores.online = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  cores.affinity = count_affinity(cores.online);
  cores.quota = read_quota(root);
  cores.usable = cores.affinity;
  // Threads that spin past a quota are stopped for the rest of the period, so round down.
  if (cores.quota > 0) {
    cores.usable = std::clamp(static_cast<int>(std::min(cores.quota, 1e6)), 1, cores.affinity);
  }
  return cores;
}

}  // namespace musespark
