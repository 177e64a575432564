# A cross compiler from PyPI (ziglang: clang, libc++ and the C libraries of many systems) for tools/wheels.py, which writes the
# programs zig-c++, zig-ar and zig-ranlib for one target into the folder that GANGPAO_ZIG names.
set(CMAKE_SYSTEM_NAME $ENV{GANGPAO_ZIG_SYSTEM})
set(CMAKE_SYSTEM_PROCESSOR $ENV{GANGPAO_ZIG_PROCESSOR})
set(CMAKE_CXX_COMPILER "$ENV{GANGPAO_ZIG}/zig-c++")
set(CMAKE_AR "$ENV{GANGPAO_ZIG}/zig-ar" CACHE FILEPATH "")
set(CMAKE_RANLIB "$ENV{GANGPAO_ZIG}/zig-ranlib" CACHE FILEPATH "")
# Nothing of this machine's system is meant for the target but Python's own headers, which scikit-build-core names.
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
