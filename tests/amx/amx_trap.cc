// Intel AMX (tiles, bf16, int8) for one process on a processor with AVX-512 and
// without AMX: each tile instruction is invalid there and raises SIGILL, whose
// handler does what Intel's manual (SDM, volume 2) says of it. A tile that the
// manual forbids ends the process. For arithmetic, not for speed: a trap takes
// a microsecond or so.
//
// tests/amx.sh preloads it beside a copy of oneDNN whose CPUID instructions
// (0F A2) are made invalid (06 A2): those answer here as a Sapphire Rapids's.

#include <cpuid.h>
#include <dlfcn.h>
#include <errno.h>
#include <immintrin.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

// A thread's tiles.
struct Tiles {
  int palette = 0;  // 0: none are configured
  int start_row = 0;
  int rows[kTiles] = {}, bytes[kTiles] = {};  // of a row
  uint32_t data[kTiles][kRows][kRowBytes / 4] = {};
};
thread_local Tiles tiles;

std::atomic<bool> permitted{false};  // by arch_prctl, as Linux wants it
std::atomic<int64_t> products_bf16{0}, products_int8{0}, configurations{0};

constexpr int kArchGetXcompSupported = 0x1021, kArchGetXcompPermitted = 0x1022,
              kArchRequestXcompPermitted = 0x1023, kTileData = 18;

// ------------------------------------------------------------ the processor

void Cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
  out[0] = out[1] = out[2] = out[3] = 0;
  switch (leaf) {
    case 0:
      out[0] = 0x20;
      memcpy(&out[1], "Genu", 4);
      memcpy(&out[3], "ineI", 4);
      memcpy(&out[2], "ntel", 4);
      return;
    case 1:
      __cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
      out[0] = 0x000806f8;
      return;
    case 4: {  // caches: 48 KiB and 32 KiB, 2 MiB, 105 MiB
      static constexpr uint32_t kCaches[4][4] = {
          {0xfc004121, 0x02c0003f, 0x3f, 0},
          {0xfc004122, 0x01c0003f, 0x3f, 0},
          {0xfc004143, 0x03c0003f, 0x7ff, 0},
          {0xfc1fc163, 0x0380003f, 0x1bfff, 4}};
      if (subleaf < 4) memcpy(out, kCaches[subleaf], sizeof(kCaches[0]));
      return;
    }
    case 7:
      __cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
      if (subleaf == 0) {
        constexpr uint32_t kFp16 = 1u << 23;
        constexpr uint32_t kAmx = 1u << 22 | 1u << 24 | 1u << 25;
        out[3] = (out[3] & ~kFp16) | kAmx;
      }
      return;
    case 0xb:  // threads
      if (subleaf == 0) {
        out[0] = 1, out[1] = 2, out[2] = 0x100;
      } else if (subleaf == 1) {
        out[0] = 7, out[1] = 112, out[2] = 0x201;
      } else {
        out[2] = subleaf;
      }
      return;
    case 0x1d:  // tiles
      if (subleaf == 0) out[0] = 1;
      if (subleaf == 1) {
        out[0] = 8192 | 1024 << 16, out[1] = 64 | 8 << 16, out[2] = 16;
      }
      return;
    case 0x1e:  // their products
      if (subleaf == 0) out[1] = 16 | 64 << 8;
      return;
    case 0x14:
    case 0x19:
    case 0x1a:
    case 0x1f:
      return;
    default:
      __cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
  }
}

// ----------------------------------------------------------------- products

// d (M, N) += a (M, K) times b (K, N); an element of a and b is two of bf16.
void MultiplyBf16(int d, int a, int b) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // no exceptions, to nearest, denormals are zero
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const auto mask = static_cast<__mmask16>((1u << tiles.bytes[d] / 4) - 1);
  for (int m = 0; m < tiles.rows[d]; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int k = 0; k < tiles.rows[b]; ++k) {
      const __m512i x =
          _mm512_set1_epi32(static_cast<int>(tiles.data[a][m][k]));
      const __m512i y = _mm512_loadu_si512(tiles.data[b][k]);
      even =
          _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                          _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)), even);
      odd =
          _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, high)),
                          _mm512_castsi512_ps(_mm512_and_si512(y, high)), odd);
    }
    auto* const row = tiles.data[d][m];
    _mm512_mask_storeu_ps(
        row, mask,
        _mm512_add_ps(_mm512_loadu_ps(row), _mm512_add_ps(even, odd)));
  }
  _mm_setcsr(before);
}

int ByteOf(uint32_t word, int i, bool is_signed) {
  const auto byte = static_cast<uint8_t>(word >> 8 * i);
  return is_signed ? static_cast<int8_t>(byte) : byte;
}

// The same for four of int8.
void MultiplyInt8(int d, int a, int b, bool a_signed, bool b_signed) {
  for (int m = 0; m < tiles.rows[d]; ++m) {
    for (int k = 0; k < tiles.rows[b]; ++k) {
      for (int n = 0; n < tiles.bytes[d] / 4; ++n) {
        int sum = 0;
        for (int i = 0; i < 4; ++i) {
          sum += ByteOf(tiles.data[a][m][k], i, a_signed) *
                 ByteOf(tiles.data[b][k][n], i, b_signed);
        }
        tiles.data[d][m][n] += static_cast<uint32_t>(sum);
      }
    }
  }
}

bool MayMultiply(int d, int a, int b) {
  const auto& rows = tiles.rows;
  const auto& bytes = tiles.bytes;
  return d != a && d != b && a != b && rows[d] > 0 && rows[a] > 0 &&
         rows[b] > 0 && ((bytes[d] | bytes[a] | bytes[b]) & 3) == 0 &&
         bytes[d] == bytes[b] && rows[d] == rows[a] && bytes[a] / 4 == rows[b];
}

// ------------------------------------------------------------- instructions

constexpr int kForbidden = -1;

// An instruction of the tiles: VEX, map 2.
struct Instruction {
  int opcode, prefix, v, reg, rm, length;
  uint8_t* address = nullptr;  // null: registers
  int64_t stride = 0;
  bool has_index = false;
};

constexpr int kRegisters[] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

int32_t Read32(const uint8_t* p) {
  int32_t value;
  memcpy(&value, p, sizeof(value));
  return value;
}

Instruction Decode(const uint8_t* p, const greg_t* registers) {
  const int r = (p[1] & 0x80) == 0 ? 8 : 0, x = (p[1] & 0x40) == 0 ? 8 : 0,
            b = (p[1] & 0x20) == 0 ? 8 : 0;
  Instruction out = {.opcode = p[3],
                     .prefix = p[2] & 3,
                     .v = ~(p[2] >> 3) & 15,
                     .reg = (p[4] >> 3 & 7) | r,
                     .rm = (p[4] & 7) | b,
                     .length = 5};
  const int mod = p[4] >> 6;
  if (mod == 3) return out;
  int64_t base = 0;
  if ((p[4] & 7) == 4) {
    out.has_index = true;
    out.length = 6;
    const int index = (p[5] >> 3 & 7) | x;
    if (index != 4) out.stride = registers[kRegisters[index]] << (p[5] >> 6);
    if (mod == 0 && (p[5] & 7) == 5) {
      base = Read32(p + 6);
      out.length = 10;
    } else {
      base = registers[kRegisters[(p[5] & 7) | b]];
    }
  } else if (mod == 0 && (p[4] & 7) == 5) {
    base = reinterpret_cast<int64_t>(p) + 9 + Read32(p + 5);
    out.length = 9;
  } else {
    base = registers[kRegisters[out.rm]];
  }
  if (mod == 1) {
    base += static_cast<int8_t>(p[out.length]);
    out.length += 1;
  } else if (mod == 2) {
    base += Read32(p + out.length);
    out.length += 4;
  }
  out.address = reinterpret_cast<uint8_t*>(base);
  return out;
}

bool LoadConfiguration(const uint8_t* from) {
  uint8_t c[64];
  memcpy(c, from, sizeof(c));
  tiles = Tiles();
  if (c[0] == 0) return true;
  bool fits = c[0] == 1;
  for (int i = 2; i < 16; ++i) fits &= c[i] == 0;
  for (int i = 32; i < 48; ++i) fits &= c[i] == 0;
  for (int i = 56; i < 64; ++i) fits &= c[i] == 0;
  tiles.palette = 1;
  tiles.start_row = c[1];
  for (int i = 0; i < kTiles; ++i) {
    tiles.rows[i] = c[48 + i];
    tiles.bytes[i] = c[16 + 2 * i] | c[17 + 2 * i] << 8;
    fits &= tiles.rows[i] <= kRows && tiles.bytes[i] <= kRowBytes &&
            (tiles.rows[i] == 0) == (tiles.bytes[i] == 0);
  }
  return fits;
}

void StoreConfiguration(uint8_t* to) {
  uint8_t c[64] = {};
  c[0] = static_cast<uint8_t>(tiles.palette);
  c[1] = static_cast<uint8_t>(tiles.start_row);
  for (int i = 0; i < kTiles; ++i) {
    c[16 + 2 * i] = static_cast<uint8_t>(tiles.bytes[i]);
    c[48 + i] = static_cast<uint8_t>(tiles.rows[i]);
  }
  memcpy(to, c, sizeof(c));
}

bool Configure(const Instruction& in) {
  if (in.v != 0) return false;
  if (in.prefix == 0 && in.address == nullptr) {  // TILERELEASE
    tiles = Tiles();
    return in.reg == 0 && in.rm == 0;
  }
  // An index is one here, not a stride.
  uint8_t* const at = in.address + in.stride;
  if (in.prefix == 0) {  // LDTILECFG
    ++configurations;
    return LoadConfiguration(at);
  }
  if (in.prefix == 1 && in.address != nullptr) {  // STTILECFG
    StoreConfiguration(at);
    return true;
  }
  if (in.prefix == 3 && in.address == nullptr) {  // TILEZERO
    if (in.reg >= kTiles || in.rm != 0 || tiles.rows[in.reg] == 0) return false;
    memset(tiles.data[in.reg], 0, sizeof(tiles.data[0]));
    return true;
  }
  return false;
}

bool Move(const Instruction& in) {
  if (in.address == nullptr || !in.has_index || in.v != 0 || in.prefix == 0 ||
      in.reg >= kTiles || tiles.rows[in.reg] == 0 || tiles.start_row != 0) {
    return false;
  }
  auto& data = tiles.data[in.reg];
  const int bytes = tiles.bytes[in.reg];
  if (in.prefix != 2) memset(data, 0, sizeof(data));
  for (int m = 0; m < tiles.rows[in.reg]; ++m) {
    uint8_t* const row = in.address + m * in.stride;
    if (in.prefix == 2) {  // TILESTORED
      memcpy(row, data[m], bytes);
    } else {  // TILELOADD, TILELOADDT1
      memcpy(data[m], row, bytes);
    }
  }
  return true;
}

bool Multiply(const Instruction& in) {
  const int d = in.reg, a = in.rm, b = in.v;
  if (in.address != nullptr || d >= kTiles || a >= kTiles || b >= kTiles ||
      !MayMultiply(d, a, b)) {
    return false;
  }
  if (in.opcode == 0x5c) {  // TDPBF16PS
    if (in.prefix != 2) return false;
    ++products_bf16;
    MultiplyBf16(d, a, b);
  } else {  // TDPBUUD, TDPBUSD, TDPBSUD, TDPBSSD
    ++products_int8;
    MultiplyInt8(d, a, b, in.prefix >= 2, (in.prefix & 1) != 0);
  }
  return true;
}

// Does the instruction at `p`. Its length; 0 if it is none of these.
int Emulate(const uint8_t* p, greg_t* registers) {
  if (p[0] == 0x06 && p[1] == 0xa2) {
    uint32_t out[4];
    Cpuid(static_cast<uint32_t>(registers[REG_RAX]),
          static_cast<uint32_t>(registers[REG_RCX]), out);
    registers[REG_RAX] = out[0];
    registers[REG_RBX] = out[1];
    registers[REG_RCX] = out[2];
    registers[REG_RDX] = out[3];
    return 2;
  }
  if (p[0] != 0xc4 || (p[1] & 0x1f) != 2) return 0;
  if (p[3] != 0x49 && p[3] != 0x4b && p[3] != 0x5c && p[3] != 0x5e) return 0;
  if ((p[2] & 0x84) != 0 || !permitted) return kForbidden;
  const Instruction in = Decode(p, registers);
  if (in.opcode != 0x49 && tiles.palette == 0) return kForbidden;
  const bool done = in.opcode == 0x49   ? Configure(in)
                    : in.opcode == 0x4b ? Move(in)
                                        : Multiply(in);
  return done ? in.length : kForbidden;
}

void OnIllegalInstruction(int, siginfo_t*, void* context) {
  greg_t* const registers =
      static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const int error = errno;
  // Those that follow at once save a trap each.
  for (int i = 0; i < 64; ++i) {
    const auto* const p = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
    const int length = Emulate(p, registers);
    if (length == 0 && i > 0) break;
    if (length <= 0) {
      char text[200];
      const int size = snprintf(text, sizeof(text),
                                "amx_trap: %s: %02x %02x %02x %02x %02x %02x\n",
                                length < 0 ? "a tile that is not allowed"
                                           : "not an instruction of the tiles",
                                p[0], p[1], p[2], p[3], p[4], p[5]);
      if (write(STDERR_FILENO, text, size) < 0) break;
      signal(SIGILL, SIG_DFL);  // and again
      break;
    }
    registers[REG_RIP] += length;
  }
  errno = error;
}

__attribute__((constructor)) void Start() {
  struct sigaction action = {};
  action.sa_sigaction = OnIllegalInstruction;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
}

__attribute__((destructor)) void Report() {
  if (!permitted) return;
  fprintf(stderr,
          "amx_trap: %lld products of tiles in bf16, %lld in int8, "
          "%lld configurations\n",
          static_cast<long long>(products_bf16),
          static_cast<long long>(products_int8),
          static_cast<long long>(configurations));
}

}  // namespace

// In place of libc's: oneDNN asks Linux for the tiles through it.
extern "C" long syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& argument : a) argument = va_arg(list, long);
  va_end(list);
  if (number == SYS_arch_prctl) {
    constexpr uint64_t kAll = 0x600e7;
    switch (a[0]) {
      case kArchRequestXcompPermitted:
        permitted = a[1] == kTileData;
        return 0;
      case kArchGetXcompPermitted:
        *reinterpret_cast<uint64_t*>(a[1]) =
            permitted ? kAll : kAll & ~(uint64_t{1} << kTileData);
        return 0;
      case kArchGetXcompSupported:
        *reinterpret_cast<uint64_t*>(a[1]) = kAll;
        return 0;
      default:
        break;
    }
  }
  using Syscall = long (*)(long, ...);
  static const auto real =
      reinterpret_cast<Syscall>(dlsym(RTLD_NEXT, "syscall"));
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
