// h = x + r, then the caps: the residual addition and the cap in one pass. h may be x or r.
//
// Bytes per row: read 2 width, written width: those of the addition alone.
#include "operation.cuh"

AXISCAP_OPERATION(add_cap, true, false)
