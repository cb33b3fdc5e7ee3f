#pragma once

// What the server's background threads do to themselves.

namespace vitrine {

// Shown by ps and in debuggers; cut to 15 characters.
void SetThreadName(const char* name);

// Lets threads that answer calls go first wherever the two compete for a core.
void YieldToServing();

// Leaves the cores to all other threads, but for a few hundredths of a core
// where those never rest. For good: Linux lets none but root go back.
void RunWhenIdle();

}  // namespace vitrine
