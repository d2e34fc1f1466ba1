// SPDX-License-Identifier: Apache-2.0
#pragma once
// The instruction sets that compilers use of their own accord on x86-64 and that not every such processor
// has: name in
// __builtin_cpu_supports, and the macro that says that a file is compiled with it.

#if defined(__x86_64__)
#define FARSKIP_COMMON_SETS(X)              \
  X("ssse3", __SSSE3__)                     \
  X("sse4.1", __SSE4_1__)                   \
  X("sse4.2", __SSE4_2__)                   \
  X("popcnt", __POPCNT__)                   \
  X("avx", __AVX__)                         \
  X("avx2", __AVX2__)                       \
  X("fma", __FMA__)                         \
  X("fma4", __FMA4__)                       \
  X("xop", __XOP__)                         \
  X("bmi", __BMI__)                         \
  X("bmi2", __BMI2__)                       \
  X("gfni", __GFNI__)                       \
  X("avx512f", __AVX512F__)                 \
  X("avx512cd", __AVX512CD__)               \
  X("avx512bw", __AVX512BW__)               \
  X("avx512dq", __AVX512DQ__)               \
  X("avx512vl", __AVX512VL__)               \
  X("avx512ifma", __AVX512IFMA__)           \
  X("avx512vbmi", __AVX512VBMI__)           \
  X("avx512vbmi2", __AVX512VBMI2__)         \
  X("avx512vnni", __AVX512VNNI__)           \
  X("avx512bitalg", __AVX512BITALG__)       \
  X("avx512vpopcntdq", __AVX512VPOPCNTDQ__) \
  X("avx512bf16", __AVX512BF16__)
#if defined(__clang__)  // whose older versions know fewer names
#define FARSKIP_SETS(X) FARSKIP_COMMON_SETS(X)
#else
#define FARSKIP_SETS(X)     \
  FARSKIP_COMMON_SETS(X)    \
  X("f16c", __F16C__)       \
  X("lzcnt", __LZCNT__)     \
  X("movbe", __MOVBE__)     \
  X("avxvnni", __AVXVNNI__) \
  X("avx512fp16", __AVX512FP16__)
#endif
#else
#define FARSKIP_SETS(X)
#endif

namespace farskip {

/// For each of FARSKIP_SETS, in order, whether the other files of this program are compiled with it; then one
/// more.
extern const bool used_sets[];

}  // namespace farskip
