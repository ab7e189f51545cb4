// Computes h = x + r and caps the rows of h, in one pass. h may be x or r.
//
// Elements per row: 2 width read, width written, as for the addition alone.
#include "operation.cuh"

AXISCAP_OPERATION(add_cap, true, false)
