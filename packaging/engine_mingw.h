/* Included before every file of llama.cpp by the cross build for Windows (engine_windows.py): what Debian 12's
   compiler and headers lack. */
#pragma once
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

/* mingw-w64 10 does not know how the plug-ins ask for full speed; Windows does. */
#ifndef THREAD_POWER_THROTTLING_CURRENT_VERSION
typedef struct {
    ULONG Version;
    ULONG ControlMask;
    ULONG StateMask;
} THREAD_POWER_THROTTLING_STATE;
#define THREAD_POWER_THROTTLING_CURRENT_VERSION 1
#define THREAD_POWER_THROTTLING_EXECUTION_SPEED 0x1
#endif

/* GCC 12's own macros take a stride for `long`, which has 32 bits here: the assembler refuses that. */
#if defined(__AMX_TILE__) && __SIZEOF_LONG__ == 4
#include <immintrin.h>
#undef _tile_loadd_internal
#undef _tile_stored_internal
#define _tile_loadd_internal(tile, base, stride) \
    __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm" #tile ::"r"((const void *)(base)), "r"((long long)(stride)))
#define _tile_stored_internal(tile, base, stride)                                                               \
    __asm__ volatile("tilestored\t%%tmm" #tile ", (%0,%1,1)" ::"r"((void *)(base)), "r"((long long)(stride)) \
                     : "memory")
#endif
