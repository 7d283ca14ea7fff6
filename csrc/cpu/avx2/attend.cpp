// Attention, over the vectors of this folder.
#include "simd.h"

#include "../shared/attend.h"
