// h = x + r, then the caps, then y = RMSNorm(h) * weight: a block's whole epilogue in one pass. h may be x or r.
//
// Bytes per row: read 2 width, written 2 width.
#include "operation.cuh"

AXISCAP_OPERATION(add_cap_norm, true, true)
