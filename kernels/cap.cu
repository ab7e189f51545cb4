// Caps the rows of h in place. A row on which no cap acts is not written.
//
// Elements per row: width read, and width written if a cap acted.
#include "operation.cuh"

AXISCAP_OPERATION(cap, false, false)
AXISCAP_PAIRS(f32, F32)
AXISCAP_PAIRS(f16, F16)
AXISCAP_PAIRS(bf16, BF16)
