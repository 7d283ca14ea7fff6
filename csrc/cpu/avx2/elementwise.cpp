// Norm, activation and residual updates, over the vectors of this folder.
#include "simd.h"

#include "../shared/elementwise.h"
