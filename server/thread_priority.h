#pragma once

// What the server's background threads do to themselves.

namespace vitrine {

// Shown by ps and in debuggers; cut to 15 characters.
void SetThreadName(const char* name);

// Lets threads that answer calls go first wherever the two compete for a core.
void YieldToServing();

}  // namespace vitrine
