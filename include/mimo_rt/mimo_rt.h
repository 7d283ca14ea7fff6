// Umbrella header of the public API.
#pragma once

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/config.h>
#include <mimo_rt/costs.h>
#include <mimo_rt/device.h>
#include <mimo_rt/draft.h>
#include <mimo_rt/dtype.h>
#include <mimo_rt/engine.h>
#include <mimo_rt/error.h>
#include <mimo_rt/kernel_bench.h>
#include <mimo_rt/packed_cache.h>
#include <mimo_rt/plan.h>
#include <mimo_rt/sampling.h>
#include <mimo_rt/session.h>
#include <mimo_rt/stats.h>
#include <mimo_rt/version.h>
