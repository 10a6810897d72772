// Pointers with accesses that the emulator can count (`mapl bench --count-accesses`).
//
//   Counted<const float> x = array;
//   sum += x[i];                      a load of 4 bytes at this line
//   Counted<float> y = array;
//   y[i] = sum;                       a store
//
// Under nvcc a Counted<T> is a T*, so the machine code is that of the plain pointer.
#pragma once

#include "vec.cuh"

#ifdef __CUDACC__

template <class T>
using Counted = T*;

#else

/// An index and the source line that uses it.
struct CountedIndex {
    long long at;
    const char* file;
    int line;

    template <class I>
    CountedIndex(I at, const char* file = __builtin_FILE(), int line = __builtin_LINE())
        : at(at), file(file), line(line) {}
};

template <class T>
class Counted {
    T* start;

public:
    /// An element that is about to be read or written.
    class Element {
        T* place;
        const char* file;
        int line;

    public:
        Element(T* place, const char* file, int line) : place(place), file(file), line(line) {}

        operator T() const {
            emulator::note_access(place, sizeof(T), false, file, line);
            return *place;
        }
        Element& operator=(T value) {
            emulator::note_access(place, sizeof(T), true, file, line);
            *place = value;
            return *this;
        }
        Element& operator=(const Element& other) {
            return *this = T(other);
        }
        Element& operator+=(T value) {
            return *this = T(*this) + value;
        }
    };

    Counted(T* start) : start(start) {}

    Element operator[](CountedIndex i) const {
        return {start + i.at, i.file, i.line};
    }
    Counted operator+(long long distance) const {
        return start + distance;
    }
};

/// Elements that are only read.
template <class T>
class Counted<const T> {
    const T* start;

public:
    Counted(const T* start) : start(start) {}

    T operator[](CountedIndex i) const {
        emulator::note_access(start + i.at, sizeof(T), false, i.file, i.line);
        return start[i.at];
    }
    Counted operator+(long long distance) const {
        return start + distance;
    }
};

#endif
