// The unfused chain that benches/gpu compares with: one simple kernel per step of the operation. The kernels
// use 16-byte accesses and take f32 rows without gaps whose width is a multiple of 4. They add in an order of
// their own, therefore their bits are not compared.
//
// Grid: one block per row (baseline_add: any; baseline_clamp: one thread per row). Block: 256 threads.
namespace {

__device__ float block_sum(float x) {
    __shared__ float partial[32];
    for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(0xffffffffu, x, m);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : 0.0f;
    for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}

}  // namespace

// out = a + b, elementwise over n quads.
extern "C" __global__ void baseline_add(float4* out, const float4* a, const float4* b, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
        float4 x = a[i], y = b[i];
        out[i] = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
    }
}

// p[row] = <h[row], axis>
extern "C" __global__ void baseline_project(float* p, const float4* h, const float4* axis, int quads) {
    const float4* row = h + (long long)blockIdx.x * quads;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
        float4 x = row[i], v = axis[i];
        sum += x.x * v.x + x.y * v.y + x.z * v.z + x.w * v.w;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) p[blockIdx.x] = sum;
}

// delta[row] = clamp(p[row], lo, hi) - p[row]
extern "C" __global__ void baseline_clamp(float* delta, const float* p, float lo, float hi, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) delta[row] = fminf(fmaxf(p[row], lo), hi) - p[row];
}

// h[row] += delta[row] axis
extern "C" __global__ void baseline_axpy(float4* h, const float* delta, const float4* axis, int quads) {
    float4* row = h + (long long)blockIdx.x * quads;
    float d = delta[blockIdx.x];
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
        float4 x = row[i], v = axis[i];
        row[i] = make_float4(x.x + d * v.x, x.y + d * v.y, x.z + d * v.z, x.w + d * v.w);
    }
}

// y[row] = h[row] / sqrt(mean(h[row]^2) + eps) * weight
extern "C" __global__ void baseline_rms_norm(float4* y, const float4* h, const float4* weight, float eps, int quads) {
    const float4* row = h + (long long)blockIdx.x * quads;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
        float4 x = row[i];
        sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    float k = rsqrtf(block_sum(sum) / (4 * quads) + eps);
    float4* out = y + (long long)blockIdx.x * quads;
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
        float4 x = row[i], w = weight[i];
        out[i] = make_float4(x.x * k * w.x, x.y * k * w.y, x.z * k * w.z, x.w * k * w.w);
    }
}

// Does nothing. Its time is the cost of a graph node.
extern "C" __global__ void baseline_empty() {}
