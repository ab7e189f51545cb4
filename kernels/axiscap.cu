// All kernels in one image. See the four operations for what each does, direct.cuh, staged.cuh and general.cuh for
// how, and ladder/ for the way there from the naive kernel.
#include "add_cap.cu"
#include "add_cap_norm.cu"
#include "cap.cu"
#include "cap_norm.cu"
