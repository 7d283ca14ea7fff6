// The namespace of this folder; see ../shared/entries.h.
#pragma once

#define MIMO_RT_ISA generic

#include "../shared/entries.h"
