// In place: cap the rows of h. A row on which no cap acts is not written.
//
// Bytes per row: read width, written width where a cap acted.
#include "operation.cuh"

AXISCAP_OPERATION(cap, false, false)
