// How many cores this process may really use.
#pragma once

#include <string>

namespace musespark {

struct CoreCount {
  int online;    // cores of the machine
  int affinity;  // cores the scheduler may place this process on
  double quota;  // cores' worth of time its control group grants per period; 0: no limit
  int usable;    // min(affinity, whole cores of the quota), at least 1: the default for threads
};

// `root` stands in front of /proc and /sys; tests pass a made-up tree.
CoreCount count_cores(const std::string& root = "");

}  // namespace musespark
