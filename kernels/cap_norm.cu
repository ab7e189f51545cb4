// Caps the rows of h in place and computes y = RMSNorm(h) * weight. The next block's norm needs no further
// launch.
//
// Elements per row: width read, width written to y, and width written to h if a cap acted.
#include "operation.cuh"

AXISCAP_OPERATION(cap_norm, false, true)
