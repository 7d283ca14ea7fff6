// The one place that holds the version: CMake and the wheel read it from here.
#pragma once

#define MIMO_RT_VERSION "0.1.0"
