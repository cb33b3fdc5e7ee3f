#pragma once

namespace vitrine {

// Keeps OpenMP's threads from spinning for long while they wait for each
// other. LibTorch and oneDNN meet at a barrier some hundred times per batch,
// and libgomp spins there for milliseconds: harmless on an idle machine, but
// where anything else wants a core (callers, a second process, a build), the
// thread that all wait for is the one without a core, and a batch takes 40
// times as long.
//
// libgomp reads its settings when it is loaded, so the program starts itself
// again with GOMP_SPINCOUNT set, unless the user has set that or
// OMP_WAIT_POLICY. To be called first in main.
void LimitOpenMpSpinning(char** argv);

}  // namespace vitrine
