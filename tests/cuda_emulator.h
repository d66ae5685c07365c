// Enough of CUDA for generated kernels to be compiled as C++ and run block by block, thread by thread, on a CPU. The
// kernels must not synchronise: a thread runs to its end before the next starts.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

#define __host__
#define __align__(bytes) alignas(bytes)
#define CUDART_INF_F INFINITY

using __half = _Float16;
using half = __half;
struct __half2 {
  __half x, y;
};
static inline bool __hgt(half a, half b) { return a > b; }
static inline bool __hlt(half a, half b) { return a < b; }

struct Index {
  unsigned x, y, z;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

template <typename T>
static T max(T a, T b) {
  return std::max(a, b);
}
template <typename T>
static T min(T a, T b) {
  return std::min(a, b);
}

template <typename... Args, std::size_t... I>
static void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<Args*>(args[I])...);
}

// As cuLaunchKernel: args[i] points to argument i.
template <typename... Args>
static void launch(void (*kernel)(Args...), void** args, const unsigned* grid, const unsigned* block) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
        for (threadIdx.z = 0; threadIdx.z < block[2]; ++threadIdx.z)
          for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x)
              call(kernel, args, std::index_sequence_for<Args...>{});
}
