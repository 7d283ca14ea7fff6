// The namespace of this folder; see ../shared/entries.h.
#pragma once

#define MIMO_RT_ISA avx2

#include "../shared/entries.h"
