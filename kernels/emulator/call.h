// Calls an entry point with an array of parameter pointers, like cuLaunchKernel.
#pragma once

#include <cstddef>
#include <utility>

namespace emulator {

template <class... Parameters, size_t... I>
void call_with(void (*kernel)(Parameters...), void** parameters, std::index_sequence<I...>) {
    kernel(*static_cast<Parameters*>(parameters[I])...);
}

template <class... Parameters>
void call(void (*kernel)(Parameters...), void** parameters) {
    call_with(kernel, parameters, std::index_sequence_for<Parameters...>());
}

}  // namespace emulator
