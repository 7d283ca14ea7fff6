// Visibility of the public C++ API.
#pragma once

#if defined(_WIN32)
#error "mimo_rt supports Linux only"
#elif defined(MIMO_RT_BUILD)
#define MIMO_RT_API __attribute__((visibility("default")))
#else
#define MIMO_RT_API
#endif
