// Caps the rows of h in place. A row on which no cap acts is not written.
//
// Elements per row: width read, and width written if a cap acted.
#include "operation.cuh"

AXISCAP_OPERATION(cap, false, false)
