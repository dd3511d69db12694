// All that a benchmark program needs; see frame/bench.h for how to use it.
#pragma once

#include "frame/bench.h"
#include "frame/limits.h"
#include "frame/memory.h"
