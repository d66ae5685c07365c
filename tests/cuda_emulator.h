// Enough of CUDA C for generated kernels to be compiled as C++. What runs them is in cuda_emulator.cpp.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) alignas(bytes)
#define CUDART_INF_F INFINITY

#pragma GCC visibility push(hidden)
struct Index {
  unsigned x, y, z;
};
// A thread never sees these change, so to the kernels they are constants.
extern "C" const Index blockIdx, threadIdx, blockDim, gridDim;

// `__shared__ T name;` is rewritten to `static Shared<T> name_memory; auto& name = name_memory.here("name");`.
void* shared_memory(void* array, std::size_t size, const char* name);
template <typename T>
struct Shared {
  alignas(64) char before[64];
  T array;
  alignas(64) char after[64];
  T& here(const char* name) { return *static_cast<T*>(shared_memory(&array, sizeof array, name)); }
};
void* dynamic_shared_memory(const char* name);

void wait_for_block(int line);
// What the lane of the same warp gives, when all of the warp have given.
std::uint64_t exchange(std::uint64_t given, unsigned lane);
unsigned lane_id();
unsigned lanes_of_warp();
#pragma GCC visibility pop

#define __syncthreads() wait_for_block(__LINE__)

static inline unsigned __activemask() { return ~0u >> (32 - lanes_of_warp()); }

template <typename T>
static T from_lane(T value, unsigned lane, bool exists) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, exists && lane < lanes_of_warp() ? lane : lane_id());
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
static T __shfl_sync(unsigned, T value, unsigned lane, unsigned width = 32) {
  return from_lane(value, (lane_id() & ~(width - 1)) | (lane & (width - 1)), true);
}
template <typename T>
static T __shfl_up_sync(unsigned, T value, unsigned delta, unsigned width = 32) {
  return from_lane(value, lane_id() - delta, (lane_id() & (width - 1)) >= delta);
}
template <typename T>
static T __shfl_down_sync(unsigned, T value, unsigned delta, unsigned width = 32) {
  return from_lane(value, lane_id() + delta, (lane_id() & (width - 1)) + delta < width);
}
template <typename T>
static T __shfl_xor_sync(unsigned, T value, unsigned mask, unsigned width = 32) {
  return from_lane(value, lane_id() ^ mask, mask < width);
}

using __half = _Float16;
using half = __half;
struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline bool __hgt(half a, half b) { return a > b; }
static inline bool __hlt(half a, half b) { return a < b; }
static inline half __float2half(float x) { return half(x); }
static inline half __float2half_rn(float x) { return half(x); }
static inline float __half2float(half x) { return x; }

#define VECTORS(T, name)                                                                        \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                            \
  struct name##3 { T x, y, z; };                                                                \
  struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; };                                      \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                             \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                     \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(short, short)
VECTORS(unsigned short, ushort)
VECTORS(long long, longlong)
VECTORS(unsigned long long, ulonglong)
#undef VECTORS

// Of a number and a NaN, CUDA's are the number.
template <typename T>
static inline T max(T a, T b) {
  return a > b || b != b ? a : b;
}
template <typename T>
static inline T min(T a, T b) {
  return a < b || b != b ? a : b;
}
static inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

// As cuLaunchKernel: args[i] points to argument i.
template <typename... Args, std::size_t... I>
__attribute__((no_sanitize("thread"))) static void call(
    void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<Args*>(args[I])...);
}
template <typename... Args>
static void call(void (*kernel)(Args...), void** args) {
  call(kernel, args, std::index_sequence_for<Args...>{});
}
