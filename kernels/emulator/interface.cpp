// The table of the emulator's functions that kernel libraries connect to.
#include "interface.h"

#include "scheduler.h"

extern "C" {

/// Returns the table; `*bytes` receives its size.
const void* emulator_interface(size_t* bytes) {
    static const emulator::Interface table = {
#define ADDRESS(type, name, parameters, arguments) &emulator::name,
        EMULATOR_INTERFACE(ADDRESS)
#undef ADDRESS
            & emulator::fail,
        emulator::counting};
    *bytes = sizeof table;
    return &table;
}

/// Bytes of the shared arrays of the last launch of this OS thread, without dynamic shared memory.
size_t emulator_shared_arrays() {
    size_t bytes = 0;
    for (const auto& array : emulator::launch().shared_arrays) {
        bytes += array.second.bytes;
    }
    return bytes;
}
}
