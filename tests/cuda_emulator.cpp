// Runs kernels block by block on one core of a CPU. The threads of a block run one after the other, in an order drawn
// anew for each block; those of kernels with barriers are fibres, which take turns from barrier to barrier.
//
// Kernels compiled with -fsanitize=thread call __tsan_read4(address) and the like before they touch memory that is not
// the thread's own. These functions are defined here, by what is known of the memory:
// - it must lie in a tensor that the kernel was given, or in its shared memory;
// - what is read must have been written;
// - between two threads' accesses to one place, of which one is a write, there must be a barrier of their block.
#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ucontext.h>

struct Index {
  unsigned x, y, z;
};

// What is known of two bytes, the smallest element: when they were last written and read, and by which thread of the
// block. The clock ticks at each launch, block and barrier; 0 is never.
struct Cell {
  std::uint32_t written, read;
  std::uint16_t writer, reader;
};
constexpr std::size_t CELL = 2;
constexpr std::uint16_t SEVERAL = 0xFFFF;

struct Tensor {
  char* data;
  std::size_t size;
  Cell* cells;
};

struct Launch {
  const char* kernel;
  void (*run)(void**);
  void** args;
  const Tensor* tensors;
  std::uint64_t tensor_count, seed;
  Index grid, block;
  std::uint32_t dynamic_shared, waits;  // bytes; whether there are barriers or exchanges
};

struct Region {
  Tensor memory;
  std::string name;
  std::uint32_t begun;  // the launch, or the block if this is shared memory: earlier accesses are in order
  std::uint32_t valid;  // what was written earlier is lost
};

enum State { READY, AT_BARRIER, AT_EXCHANGE, ENDED };

struct Fibre {
  std::unique_ptr<char[]> stack;
  bool begun = false;
  std::jmp_buf here;
  State state;
  int line;                // of the barrier
  std::uint64_t given[2];  // to this exchange and to the last, which others may not have read yet
  unsigned exchanges;
};

constexpr std::size_t STACK = 256 << 10;
constexpr unsigned WARP = 32;
constexpr int POISON = 0xFF;  // makes NaN of any floating type

#pragma GCC visibility push(hidden)
extern "C" {
Index blockIdx, threadIdx, blockDim, gridDim;
}
#pragma GCC visibility pop

static const Launch* launch;
static unsigned threads, thread;  // of the block; the one that runs
static const char* stack_end;     // of that thread
static std::uint64_t random_state;
static std::uint32_t now = 1, block_begun;
static std::vector<Region> regions;
static std::map<void*, std::vector<Cell>> shared_cells;
static std::vector<Fibre> fibres;
static std::jmp_buf scheduler, failed;
static char fault[500];
alignas(1024) static char dynamic_memory[228 << 10];  // as much as the largest GPUs have

static Index index_of(unsigned i, const Index& size) {
  return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

static std::string text(const Index& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

static std::string thread_text(unsigned i) { return "thread " + text(index_of(i, blockDim)); }

// Leave the launch. No destructor runs between here and there.
[[noreturn]] static void leave() { std::longjmp(failed, 1); }

static void fail(const std::string& what) {
  std::string message = std::string(launch->kernel) + ", block " + text(blockIdx) + ": " + what;
  std::snprintf(fault, sizeof fault, "%s", message.c_str());
}

static void shuffle(std::vector<unsigned>& order) {
  for (std::size_t i = order.size(); i > 1; --i) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;  // Knuth's, for MMIX
    std::swap(order[i - 1], order[(random_state >> 32) * i >> 32]);
  }
}

static std::vector<unsigned> numbers(unsigned count) {
  std::vector<unsigned> result(count);
  for (unsigned i = 0; i < count; ++i) result[i] = i;
  return result;
}

// -- Memory --

static const char* name_accesses(bool write) { return write ? "writes" : "reads"; }

[[noreturn]] static void fail_outside(const char* at, std::size_t size, bool write) {
  const Region* nearest = nullptr;
  std::ptrdiff_t distance = 0;  // negative before the region
  for (const Region& region : regions) {
    const char* end = region.memory.data + region.memory.size;
    std::ptrdiff_t here = at < region.memory.data ? at - region.memory.data : at - end;
    if (!nearest || std::abs(here) < std::abs(distance)) nearest = &region, distance = here;
  }
  std::string where = !nearest ? "" : distance < 0
    ? ", " + std::to_string(-distance) + " bytes before " + nearest->name
    : ", " + std::to_string(distance) + " bytes after the end of " + nearest->name;
  fail(thread_text(thread) + " " + name_accesses(write) + " " + std::to_string(size) + " bytes out of bounds" + where);
  leave();
}

[[noreturn]] static void fail_at(const Region& region, const Cell* cell, bool write, const std::string& what) {
  std::string byte = std::to_string((cell - region.memory.cells) * CELL);
  fail(thread_text(thread) + " " + name_accesses(write) + " byte " + byte + " of " + region.name + ", which " + what);
  leave();
}

// Whether an access at that time by that thread, and one now by this thread, may happen in either order.
static bool unordered(const Region& region, std::uint32_t when, std::uint16_t who) {
  return when >= region.begun && (when < block_begun || (when == now && who != thread));
}

[[noreturn]] static void fail_race(const Region& region, const Cell* cell, bool write, bool wrote) {
  std::uint32_t when = wrote ? cell->written : cell->read;
  unsigned who = wrote ? cell->writer : cell->reader;
  std::string other = when < block_begun ? "another block" : who == SEVERAL ? "other threads" : thread_text(who);
  fail_at(region, cell, write, other + (wrote ? " writes" : " reads") + " with no barrier between: a race");
}

static void access_cell(const Region& region, Cell* cell, bool write) {
  if (!write && cell->written < region.valid) fail_at(region, cell, write, "was never written");
  if (unordered(region, cell->written, cell->writer)) fail_race(region, cell, write, true);
  bool others_read = unordered(region, cell->read, cell->reader);
  if (write) {
    if (others_read) fail_race(region, cell, write, false);
    cell->written = now;
    cell->writer = thread;
  } else if (!others_read) {
    cell->read = now;
    cell->reader = thread;
  } else if (cell->read == now) {
    cell->reader = SEVERAL;
  }
}

static void access(const void* address, std::size_t size, bool write) {
  const char* at = static_cast<const char*>(address);
  if (at >= __builtin_frame_address(0) && at < stack_end) return;  // a variable of the thread's own
  for (const Region& region : regions) {
    std::size_t offset = at - region.memory.data;
    if (offset >= region.memory.size) continue;
    if (size > region.memory.size - offset) break;
    Cell* cells = region.memory.cells;
    for (std::size_t i = offset / CELL; i * CELL < offset + size; ++i) access_cell(region, cells + i, write);
    return;
  }
  fail_outside(at, size, write);
}

extern "C" {
void __tsan_init() {}
#define ACCESS(size)                                                                 \
  void __tsan_read##size(void* at) { access(at, size, false); }                      \
  void __tsan_write##size(void* at) { access(at, size, true); }                      \
  void __tsan_unaligned_read##size(void* at) { access(at, size, false); }            \
  void __tsan_unaligned_write##size(void* at) { access(at, size, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, std::size_t size) { access(at, size, false); }
void __tsan_write_range(void* at, std::size_t size) { access(at, size, true); }
}

// Called by each thread that comes to the declaration: for the first of the block, the memory is new.
static void* shared(void* array, std::size_t size, const std::string& name) {
  for (const Region& region : regions)
    if (region.memory.data == array) return array;
  std::memset(array, POISON, size);
  std::vector<Cell>& cells = shared_cells[array];
  cells.resize((size + CELL - 1) / CELL);
  regions.push_back({{static_cast<char*>(array), size, cells.data()}, "shared memory `" + name + "`", block_begun,
                     block_begun});
  return array;
}
void* shared_memory(void* array, std::size_t size, const char* name) { return shared(array, size, name); }
void* dynamic_shared_memory(const char* name) { return shared(dynamic_memory, launch->dynamic_shared, name); }

// -- Fibres --

static void suspend() {
  if (!_setjmp(fibres[thread].here)) std::longjmp(scheduler, 1);
}

static void live() {
  for (;;) {
    launch->run(launch->args);
    fibres[thread].state = ENDED;
    suspend();
  }
}

static void resume(unsigned i) {
  Fibre& fibre = fibres[i];
  thread = i;
  threadIdx = index_of(i, blockDim);
  stack_end = fibre.stack.get() + STACK;
  if (_setjmp(scheduler)) return;
  if (fibre.begun) std::longjmp(fibre.here, 1);
  fibre.begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fibre.stack.get();
  context.uc_stack.ss_size = STACK;
  makecontext(&context, live, 0);
  setcontext(&context);
}

static void wait(State state, int line) {
  if (!launch->waits) {
    fail("a function that the kernel calls waits, which only kernels themselves may");
    leave();
  }
  fibres[thread].state = state;
  fibres[thread].line = line;
  suspend();
}

void wait_for_block(int line) { wait(AT_BARRIER, line); }

unsigned lane_id() { return thread % WARP; }
unsigned lanes_of_warp() { return std::min(WARP, threads - thread / WARP * WARP); }

std::uint64_t exchange(std::uint64_t given, unsigned lane) {
  Fibre& fibre = fibres[thread];
  unsigned round = fibre.exchanges++ % 2;
  fibre.given[round] = given;
  wait(AT_EXCHANGE, 0);
  return fibres[thread / WARP * WARP + lane].given[round];
}

// Let these fibres go on if all of them are there.
static bool release(unsigned begin, unsigned end, State state) {
  for (unsigned i = begin; i < end; ++i)
    if (fibres[i].state != state || fibres[i].line != fibres[begin].line) return false;
  for (unsigned i = begin; i < end; ++i) fibres[i].state = READY;
  return true;
}

static std::string state_text(unsigned i) {
  const Fibre& fibre = fibres[i];
  return thread_text(i) + (fibre.state == ENDED ? " has ended" : fibre.state == AT_EXCHANGE ? " waits for its warp"
                           : " waits at the barrier of line " + std::to_string(fibre.line));
}

[[noreturn]] static void fail_divergent() {
  unsigned waiting = 0, other = 0;
  while (fibres[waiting].state == ENDED) ++waiting;
  while (fibres[other].state == fibres[waiting].state && fibres[other].line == fibres[waiting].line) ++other;
  fail("divergent barrier: " + state_text(waiting) + ", but " + state_text(other));
  leave();
}

static void run_fibres(std::vector<unsigned>& order) {
  for (unsigned i = 0; i < threads; ++i) {
    fibres[i].state = READY;
    fibres[i].exchanges = 0;
  }
  for (;;) {
    shuffle(order);
    for (unsigned i : order)
      if (fibres[i].state == READY) resume(i);
    bool released = false;
    for (unsigned i = 0; i < threads; i += WARP)
      released |= release(i, std::min(i + WARP, threads), AT_EXCHANGE);
    if (released) continue;
    if (release(0, threads, ENDED)) return;
    if (!release(0, threads, AT_BARRIER)) fail_divergent();
    ++now;
  }
}

// -- Launches --

static void run_loop(std::vector<unsigned>& order) {
  stack_end = static_cast<const char*>(__builtin_frame_address(0));
  shuffle(order);
  for (unsigned i : order) {
    thread = i;
    threadIdx = index_of(i, blockDim);
    launch->run(launch->args);
  }
}

// What is wrong with the kernel, or null.
extern "C" __attribute__((visibility("default"))) const char* cuda_emulator_launch(const Launch* what) {
  launch = what;
  gridDim = launch->grid;
  blockDim = launch->block;
  threads = blockDim.x * blockDim.y * blockDim.z;
  random_state = launch->seed;
  regions.clear();
  ++now;
  for (std::size_t i = 0; i < launch->tensor_count; ++i)
    regions.push_back({launch->tensors[i], "argument " + std::to_string(i), now, 1});
  while (launch->waits && fibres.size() < threads) fibres.emplace_back().stack.reset(new char[STACK]);
  static std::vector<unsigned> blocks, order;
  blocks = numbers(gridDim.x * gridDim.y * gridDim.z);
  order = numbers(threads);
  shuffle(blocks);
  if (_setjmp(failed)) {
    for (Fibre& fibre : fibres) fibre.begun = false;
    return fault;
  }
  for (unsigned i : blocks) {
    blockIdx = index_of(i, gridDim);
    block_begun = ++now;
    regions.resize(launch->tensor_count);
    launch->waits ? run_fibres(order) : run_loop(order);
  }
  return nullptr;
}
