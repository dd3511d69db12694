// The kernel tables this machine can run, by name, the best one last.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"

namespace margay {

std::vector<std::pair<std::string, const CpuKernels*>> UsableKernels();

}  // namespace margay
