// Included once by a kernel library that is compiled at run time. It defines the emulator's functions, which
// forward to the program's table, and the entry point that receives the table.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "call.h"
#include "interface.h"

namespace emulator {

static Interface connected;
const int* counting = nullptr;

#define FORWARD(type, name, parameters, arguments) \
    type name parameters {                         \
        return connected.name arguments;           \
    }
EMULATOR_INTERFACE(FORWARD)
#undef FORWARD

void fail(const char* format, ...) {
    char text[1024];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    connected.fail("%s", text);
    __builtin_unreachable();
}

}  // namespace emulator

/// Stores the table. Returns 0, or 1 if its size is that of a different emulator version.
extern "C" __attribute__((visibility("default"))) int emulator_connect(const void* table, size_t bytes) {
    if (bytes != sizeof(emulator::Interface)) {
        return 1;
    }
    emulator::connected = *static_cast<const emulator::Interface*>(table);
    emulator::counting = emulator::connected.counting;
    return 0;
}
