#pragma once

// Which build this is.

namespace vitrine {

inline constexpr char kVersion[] = VITRINE_VERSION;
inline constexpr char kBuildType[] = VITRINE_BUILD_TYPE;
#ifdef __clang__
inline constexpr char kCompiler[] = "clang " __clang_version__;
#else
inline constexpr char kCompiler[] = "gcc " __VERSION__;
#endif

}  // namespace vitrine
