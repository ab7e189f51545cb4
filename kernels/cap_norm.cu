// Cap the rows of h, then y = RMSNorm(h) * weight: the next block's norm without a launch of its own.
//
// Bytes per row: read width, written width for y, and width for h where a cap acted.
#include "operation.cuh"

AXISCAP_OPERATION(cap_norm, false, true)
