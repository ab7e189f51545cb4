// Computes h = x + r, caps the rows of h, and computes y = RMSNorm(h) * weight, in one pass. h may be x or r.
//
// Elements per row: 2 width read, 2 width written. Addition and norm as two kernels read 3 width and write 2
// width.
#include "operation.cuh"

AXISCAP_OPERATION(add_cap_norm, true, true)
