// All kernels in one image. The four operations say what is computed, and cluster.cuh, single.cuh, direct.cuh,
// pairs.cuh, staged.cuh and general.cuh say how. ladder/ leads from the naive kernel to the production one.
#include "add_cap.cu"
#include "add_cap_norm.cu"
#include "cap.cu"
#include "cap_norm.cu"
