#pragma once

#include <pthread.h>

namespace margay {

// Names the calling thread for /proc, debuggers and profilers; at most 15 characters count.
inline void NameThread(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace margay
