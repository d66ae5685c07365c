// Emulates AMX-BF16 and AVX512-BF16 on processors that have AVX-512 but not these: a handler of SIGILL reads the
// instruction, does what the Intel SDM says of it to the saved registers, and steps over it. What this processor has
// is left to it, and so is everything that is not known here: it goes to the handler that was there before.
//
// Not emulated: restarts in the middle of a tile (start_row), prefixes of segments and of short addresses.
#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { TDPBF16PS, VDPBF16PS, VCVTNE2PS2BF16, VCVTNEPS2BF16, LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD,
       TILESTORED, KINDS };
enum { NP, P66, PF3, PF2 };  // the prefix that VEX and EVEX stand for

static atomic_long counts[KINDS];
static struct sigaction earlier;
static int installed;
static bool has_tiles, has_bf16;  // this processor

long emulated(int which) { return which < 0 || which >= KINDS ? -1 : atomic_load(&counts[which]); }

static bool done(int which) {
  atomic_fetch_add(&counts[which], 1);
  return true;
}

static bool refuse(const char *why) {
  dprintf(STDERR_FILENO, "x86_emulator: %s\n", why);
  return false;
}

// -- Saved registers --

// Components of the XSAVE area, by their number.
enum { SSE = 1, YMM_HIGH = 2, MASKS = 5, ZMM_HIGH = 6, ZMM_16_31 = 7, COMPONENTS };
static const uint64_t NEEDED = 1 << SSE | 1 << YMM_HIGH | 1 << MASKS | 1 << ZMM_HIGH | 1 << ZMM_16_31;
static uint32_t offsets[COMPONENTS] = {[SSE] = 160}, sizes[COMPONENTS] = {[SSE] = 256};

typedef struct {
  greg_t *general;
  uint8_t *area;
} Saved;

static bool find_saved(Saved *saved, ucontext_t *context) {
  uint32_t magic;
  uint64_t features;
  saved->general = context->uc_mcontext.gregs;
  saved->area = (uint8_t *)context->uc_mcontext.fpregs;
  if (!saved->area) return refuse("the signal has no vector registers");
  memcpy(&magic, saved->area + 464, sizeof magic);  // sw_reserved of Linux's struct _fpstate
  memcpy(&features, saved->area + 472, sizeof features);
  return (magic == 0x46505853 && (features & NEEDED) == NEEDED) || refuse("the signal has no registers of AVX-512");
}

static uint64_t *in_use(const Saved *saved) { return (uint64_t *)(saved->area + 512); }

static const uint8_t *read_component(const Saved *saved, int component) {
  static const uint8_t zeros[1024];
  return *in_use(saved) >> component & 1 ? saved->area + offsets[component] : zeros;
}

static uint8_t *write_component(const Saved *saved, int component) {
  uint8_t *at = saved->area + offsets[component];
  if (!(*in_use(saved) >> component & 1)) memset(at, 0, sizes[component]);
  *in_use(saved) |= 1 << component;
  return at;
}

static void read_vector(const Saved *saved, unsigned i, void *value) {
  uint8_t *to = value;
  if (i >= 16) {
    memcpy(to, read_component(saved, ZMM_16_31) + 64 * (i - 16), 64);
    return;
  }
  memcpy(to, read_component(saved, SSE) + 16 * i, 16);
  memcpy(to + 16, read_component(saved, YMM_HIGH) + 16 * i, 16);
  memcpy(to + 32, read_component(saved, ZMM_HIGH) + 32 * i, 32);
}

static void write_vector(const Saved *saved, unsigned i, const void *value) {
  const uint8_t *from = value;
  if (i >= 16) {
    memcpy(write_component(saved, ZMM_16_31) + 64 * (i - 16), from, 64);
    return;
  }
  memcpy(write_component(saved, SSE) + 16 * i, from, 16);
  memcpy(write_component(saved, YMM_HIGH) + 16 * i, from + 16, 16);
  memcpy(write_component(saved, ZMM_HIGH) + 32 * i, from + 32, 32);
}

static uint64_t read_general(const Saved *saved, unsigned i) {
  static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return saved->general[places[i]];
}

// -- Operands --

typedef struct {
  bool in_memory, has_sib;
  unsigned reg, rm;  // of 3 bits
  uint8_t *address;    // without the index
  int64_t index;       // scaled; of tiles, the distance of rows
  const uint8_t *end;  // of the instruction
} Operand;

static Operand operand(const Saved *saved, const uint8_t *at, unsigned index_high, unsigned base_high, int scale8) {
  unsigned mod = *at >> 6, base = *at & 7;
  Operand o = {.in_memory = mod != 3, .reg = *at >> 3 & 7, .rm = base};
  uint64_t address = 0;
  int32_t offset = 0;
  at++;
  if (o.in_memory) {
    o.has_sib = base == 4;
    if (o.has_sib) {
      unsigned index = (*at >> 3 & 7) | index_high << 3;
      base = *at & 7;
      if (index != 4) o.index = (int64_t)(read_general(saved, index) << (*at >> 6));
      at++;
    }
    bool no_base = mod == 0 && base == 5;
    if (mod == 1) {
      offset = (int8_t)*at++ * scale8;
    } else if (mod == 2 || no_base) {
      memcpy(&offset, at, 4);
      at += 4;
    }
    if (!no_base) address = read_general(saved, base | base_high << 3);
    else if (!o.has_sib) address = (uint64_t)at;  // relative to the next instruction
  }
  o.address = (uint8_t *)(address + (int64_t)offset);
  o.end = at;
  return o;
}

// -- AMX --

static _Thread_local struct {
  bool configured;
  uint8_t config[64];
  uint8_t data[8][16][64];
} tiles;

static unsigned bytes_of(unsigned tile) { return tiles.config[16 + 2 * tile] | tiles.config[17 + 2 * tile] << 8; }
static unsigned rows_of(unsigned tile) { return tiles.config[48 + tile]; }

static bool load_config(const uint8_t *at) {
  uint8_t config[64];
  memcpy(config, at, sizeof config);
  if (config[0] > 1) return refuse("ldtilecfg: palette");
  if (config[0] == 1) {
    if (config[1]) return refuse("ldtilecfg: start_row");
    for (int i = 2; i < 64; ++i)
      if (config[i] && (i < 16 || (i >= 32 && i < 48) || i >= 56)) return refuse("ldtilecfg: a reserved byte is not 0");
    for (int i = 0; i < 8; ++i) {
      unsigned bytes = config[16 + 2 * i] | config[17 + 2 * i] << 8, rows = config[48 + i];
      if (bytes > 64 || rows > 16) return refuse("ldtilecfg: a tile is too large");
      if (!bytes != !rows) return refuse("ldtilecfg: a tile has rows without columns, or the reverse");
    }
  }
  memset(&tiles, 0, sizeof tiles);
  tiles.configured = config[0] == 1;
  if (tiles.configured) memcpy(tiles.config, config, sizeof config);
  return true;
}

static bool is_configured(unsigned tile) {
  return (tiles.configured && rows_of(tile)) || refuse("a tile that is not configured");
}

// The processor looks at MXCSR neither for this nor for vdpbf16ps. Both are functions of their own, so that the
// arithmetic stays behind the setting; the saved MXCSR comes back with the other registers.
enum { ZEROS_FOR_DENORMALS = 0x9FC0 };  // of operands and results; rounds to even, raises nothing

__attribute__((target("avx512f"))) static __m512 low(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
__attribute__((target("avx512f"))) static __m512 high(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
}

__attribute__((noinline, target("avx512f"))) static void multiply_tiles(unsigned c, unsigned a, unsigned b) {
  __mmask16 columns = (1u << bytes_of(c) / 4) - 1;
  for (unsigned m = 0; m < rows_of(c); ++m) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (unsigned k = 0; k < bytes_of(a) / 4; ++k) {
      int pair;
      memcpy(&pair, tiles.data[a][m] + 4 * k, 4);
      __m512i left = _mm512_set1_epi32(pair), right = _mm512_loadu_si512(tiles.data[b][k]);
      even = _mm512_fmadd_ps(low(left), low(right), even);
      odd = _mm512_fmadd_ps(high(left), high(right), odd);
    }
    __m512 sum = _mm512_add_ps(_mm512_loadu_ps(tiles.data[c][m]), _mm512_add_ps(even, odd));
    _mm512_storeu_ps(tiles.data[c][m], _mm512_maskz_mov_ps(columns, sum));
  }
}

static bool dot_products(unsigned c, unsigned a, unsigned b) {
  if (c == a || c == b || a == b) return refuse("tdpbf16ps: the same tile twice");
  if (!is_configured(c) || !is_configured(a) || !is_configured(b)) return false;
  if (bytes_of(c) % 4 || bytes_of(a) % 4 || bytes_of(b) % 4) return refuse("tdpbf16ps: a tile with half a column");
  if (rows_of(a) != rows_of(c) || bytes_of(a) != 4 * rows_of(b) || bytes_of(b) != bytes_of(c))
    return refuse("tdpbf16ps: tiles of shapes that do not match");
  _mm_setcsr(ZEROS_FOR_DENORMALS);
  multiply_tiles(c, a, b);
  return done(TDPBF16PS);
}

static bool move_tile(unsigned tile, const Operand *o, bool store) {
  if (!o->has_sib) return refuse("a tile's memory without SIB");
  if (!is_configured(tile)) return false;
  uint8_t(*data)[64] = tiles.data[tile];
  if (!store) memset(data, 0, sizeof tiles.data[tile]);
  for (unsigned row = 0; row < rows_of(tile); ++row) {
    uint8_t *memory = o->address + row * o->index;
    if (store) memcpy(memory, data[row], bytes_of(tile));
    else memcpy(data[row], memory, bytes_of(tile));
  }
  return done(store ? TILESTORED : TILELOADD);
}

// `at` is after the byte C4.
static const uint8_t *vex(const Saved *saved, const uint8_t *at) {
  unsigned high_bits = at[0] >> 5 ^ 7, map = at[0] & 31, wide = at[1] >> 7, source = (at[1] >> 3 & 15) ^ 15;
  unsigned length = at[1] >> 2 & 1, prefix = at[1] & 3, opcode = at[2];
  if (has_tiles || map != 2 || wide || length || high_bits & 4) return NULL;
  Operand o = operand(saved, at + 3, high_bits >> 1 & 1, high_bits & 1, 1);
  bool known = false;
  if (opcode == 0x5C && prefix == PF3 && !o.in_memory && source < 8 && !(high_bits & 1)) {
    known = dot_products(o.reg, o.rm, source);
  } else if (source) {
    return NULL;
  } else if (opcode == 0x49 && o.in_memory && o.reg == 0 && prefix == NP) {
    known = load_config(o.address + o.index) && done(LDTILECFG);
  } else if (opcode == 0x49 && o.in_memory && o.reg == 0 && prefix == P66) {
    memcpy(o.address + o.index, tiles.config, sizeof tiles.config);
    known = done(STTILECFG);
  } else if (opcode == 0x49 && at[3] == 0xC0 && prefix == NP) {
    memset(&tiles, 0, sizeof tiles);
    known = done(TILERELEASE);
  } else if (opcode == 0x49 && !o.in_memory && o.rm == 0 && prefix == PF2 && is_configured(o.reg)) {
    memset(tiles.data[o.reg], 0, sizeof tiles.data[o.reg]);
    known = done(TILEZERO);
  } else if (opcode == 0x4B && o.in_memory && prefix != NP) {
    known = move_tile(o.reg, &o, prefix == PF3);
  }
  return known ? o.end : NULL;
}

// -- AVX512-BF16 --

__attribute__((noinline, target("avx512f"))) static void multiply_pairs(void *c, const void *a, const void *b) {
  __m512i left = _mm512_loadu_si512(a), right = _mm512_loadu_si512(b);
  __m512 terms[] = {_mm512_loadu_ps(c), high(right), high(left), low(right), low(left)};
  __m512 sum = _mm512_fmadd_ps(high(left), high(right), terms[0]);
  sum = _mm512_fmadd_ps(low(left), low(right), sum);
  for (int i = 0; i < 5; ++i) {  // the last NaN is the one to be seen
    __m512 quiet = _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(terms[i]), _mm512_set1_epi32(1 << 22)));
    sum = _mm512_mask_mov_ps(sum, _mm512_cmp_ps_mask(terms[i], terms[i], _CMP_UNORD_Q), quiet);
  }
  _mm512_storeu_ps(c, sum);
}

static uint16_t rounded(uint32_t x) {
  uint32_t exponent = x & 0x7F800000;
  if (exponent == 0) return x >> 16 & 0x8000;
  if (exponent == 0x7F800000) return x >> 16 | (x & 0x7FFFFF ? 0x40 : 0);
  return (x + 0x7FFF + (x >> 16 & 1)) >> 16;
}

// `at` is after the byte 62.
static const uint8_t *evex(const Saved *saved, const uint8_t *at) {
  unsigned high_bits = at[0] >> 4 ^ 15, prefix = at[1] & 3, opcode = at[3], mask = at[2] & 7, length = at[2] >> 5 & 3;
  unsigned source = ((at[1] >> 3 & 15) | (at[2] << 1 & 16)) ^ 31;
  bool broadcast = at[2] & 16, zeroing = at[2] & 128;
  int which = opcode == 0x52 && prefix == PF3   ? VDPBF16PS
              : opcode == 0x72 && prefix == PF3 ? VCVTNEPS2BF16
              : opcode == 0x72 && prefix == PF2 ? VCVTNE2PS2BF16
                                                : -1;
  bool valid = (at[0] & 15) == 2 && (at[1] & 0x84) == 4 && length < 3 && (mask || !zeroing);
  if (has_bf16 || which < 0 || !valid || (which == VCVTNEPS2BF16 && source)) return NULL;

  unsigned width = 16 << length, elements = width / 4;  // bytes; f32
  Operand o = operand(saved, at + 4, high_bits >> 2 & 1, high_bits >> 1 & 1, broadcast ? 4 : width);
  if (broadcast && !o.in_memory) return NULL;
  unsigned target = o.reg | (high_bits & 8) | (high_bits << 4 & 16), chosen = ~0u;
  if (mask) memcpy(&chosen, read_component(saved, MASKS) + 8 * mask, 4);

  uint32_t first[16], second[16] = {0}, sums[16];
  uint8_t old[64], values[64], result[64] = {0}, *memory = o.address + o.index;
  read_vector(saved, target, old);
  read_vector(saved, source, first);
  if (!o.in_memory) read_vector(saved, o.rm | (high_bits << 2 & 8) | (high_bits << 2 & 16), second);
  else
    for (unsigned i = 0; i < elements; ++i)  // what the mask hides may not be there, except for vcvtne2ps2bf16
      if (which == VCVTNE2PS2BF16 || chosen >> i & 1) memcpy(&second[i], memory + (broadcast ? 0 : 4 * i), 4);

  unsigned size = which == VDPBF16PS ? 4 : 2;
  if (which == VDPBF16PS) {
    memcpy(sums, old, sizeof sums);
    _mm_setcsr(ZEROS_FOR_DENORMALS);
    multiply_pairs(sums, first, second);
    memcpy(values, sums, sizeof sums);
  } else {
    for (unsigned i = 0; i < 32; ++i) {
      uint16_t value = rounded(i < elements ? second[i] : first[(i - elements) % 16]);
      memcpy(values + 2 * i, &value, 2);
    }
    if (which == VCVTNE2PS2BF16) elements *= 2;
  }
  for (unsigned i = 0; i < elements; ++i)
    if (chosen >> i & 1) memcpy(result + size * i, values + size * i, size);
    else if (!zeroing) memcpy(result + size * i, old + size * i, size);
  write_vector(saved, target, result);
  done(which);
  return o.end;
}

// -- The handler --

static void handle(int signal, siginfo_t *info, void *context) {
  Saved saved;
  const uint8_t *at = (const uint8_t *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP], *next = NULL;
  if ((*at == 0xC4 || *at == 0x62) && find_saved(&saved, context))
    next = *at == 0xC4 ? vex(&saved, at + 1) : evex(&saved, at + 1);
  if (next) saved.general[REG_RIP] = (greg_t)next;
  else if (earlier.sa_flags & SA_SIGINFO) earlier.sa_sigaction(signal, info, context);
  else if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) earlier.sa_handler(signal);
  else sigaction(SIGILL, &earlier, NULL);  // which the same instruction then meets
}

static void look_at_processor(void) {
  unsigned a, b, c, d, enabled, unused;
  for (int i = YMM_HIGH; i < COMPONENTS; ++i) __cpuid_count(0xD, i, sizes[i], offsets[i], c, d);
  __asm__("xgetbv" : "=a"(enabled), "=d"(unused) : "c"(0));
  __cpuid_count(7, 0, a, b, c, d);
  has_tiles = d >> 22 & d >> 24 & 1 && (enabled >> 17 & 3) == 3;
  if (a) __cpuid_count(7, 1, a, b, c, d);
  has_bf16 = a >> 5 & 1;
}

// 0, or -1 and errno. May be nested.
int install(void) {
  if (installed) return ++installed, 0;
  look_at_processor();
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
  if (sigaction(SIGILL, &action, &earlier)) return -1;
  installed = 1;
  return 0;
}

void uninstall(void) {
  if (installed && !--installed) sigaction(SIGILL, &earlier, NULL);
}
