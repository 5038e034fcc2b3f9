/* Runs an allocation trace with the C library's malloc and writes the address of every block.
 *
 *   libc_harness EVENTS RESULT PLACE MODE
 *
 * EVENTS is a file of `Event`s. RESULT gets a `Header`, the addresses (a u64 for each event, 0 if it returned no address)
 * and RESIDENT_POINTS numbers of resident bytes. A mark in the events is a call of malloc_trim(0). OP_THREAD_END ends
 * its thread, which must not have later events. MODE is
 *
 *   addresses   only addresses
 *   time        the loop only makes the calls; only run_ns is valid; one thread
 *   resident    all requested bytes of every block are written; at evenly spaced rows, and at the end, the resident bytes
 *               of the process are read, including reserved huge pages, minus those before the run
 *   huge        the same with transparent huge pages, which are off in other modes; they are on only during each event,
 *               so that none are collapsed in the background
 *
 * Requests of 0 bytes: in domain libc they are passed to libc, so that realloc(p, 0) frees p. In the other domains, which
 * are CPython's, libc is called with 1 byte.
 *
 * The main thread runs the events of thread 0; each other number has a thread of its own. One thread runs at a time and
 * then wakes the next. Creating a thread allocates once, in the main arena: Header.thread_bytes is the size and flags of
 * the chunk, thread_place the address of the first such block. Threads are created before the run, by number.
 *
 * Otherwise the heap is untouched: the program does not allocate before the run. The first mapping of the run ends at
 * Header.base; the next ones are below it without gaps, as in a new process, because every hole above is filled before.
 * PLACE sets the base modulo PLACE_MODULUS. Before and after the run, the program calls madvise with the advice MARK,
 * which the kernel rejects: these calls are marks in the output of strace.
 *
 * The program has its own start code and needs only symbols of glibc 2.2.5, so that the ld.so of any version can run it.
 * With MUSL, it is linked with musl, statically: then nothing is allocated before the trace. */
#define _GNU_SOURCE
#include "address_space.h"

#include <limits.h>
#include <linux/futex.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <time.h>

enum { OP_MALLOC, OP_CALLOC, OP_REALLOC, OP_FREE, OP_MEMALIGN, OP_THREAD_END = 18, OP_MARK = 32 };
enum { DOMAIN_LIBC = 3 };
enum { MARK = 12345, RESIDENT_POINTS = 10, THREADS_MAX = 4096, STACK_BYTES = 16384, STACK_TOUCHED = 8192 };

typedef struct { uint8_t op, domain; uint16_t thread; uint32_t block; uint64_t size : 56, alignment_log2 : 8; } Event;
typedef struct { uint64_t rows, base, heap, run_ns, thread_bytes, thread_place; } Header;

#ifndef MUSL
__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_join,pthread_join@GLIBC_2.2.5");
__asm__(".symver pthread_attr_init,pthread_attr_init@GLIBC_2.2.5");
__asm__(".symver pthread_attr_setstacksize,pthread_attr_setstacksize@GLIBC_2.2.5");
__asm__(".symver pthread_attr_setguardsize,pthread_attr_setguardsize@GLIBC_2.2.5");
#endif

#define PLACE_MODULUS ((uintptr_t)1 << 34)

static void *map_memory(size_t bytes) {
    void *memory = raw_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        die("the harness found no memory for itself");
    return memory;
}

static uint64_t resident_bytes(void) {
    read_text("/proc/self/smaps_rollup");
    char *line = strstr(text, "\nAnonymous:"); /* without mapped files: pages of code are not malloc's memory */
    char *huge_line = strstr(text, "\nPrivate_Hugetlb:");
    return 1024 * ((line ? strtoull(line + 11, NULL, 10) : 0) + (huge_line ? strtoull(huge_line + 17, NULL, 10) : 0));
}

static uint64_t now_ns(void) {
    struct timespec time;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void disable_huge_pages(long are_disabled) {
    syscall(SYS_prctl, PR_SET_THP_DISABLE, are_disabled, 0L, 0L, 0L);
}

static size_t libc_bytes(const Event *event) {
    return event->size || event->domain == DOMAIN_LIBC ? (size_t)event->size : 1;
}

static int is_request(const Event *event) {
    return event->op <= OP_REALLOC || event->op == OP_MEMALIGN;
}

/* All calls that stand for the same: malloc must serve each of them alike. */
static void *run_memalign(const Event *event, size_t alignment, size_t bytes) {
    void *block = NULL;
#ifndef MUSL
    if (alignment == PAGE)
        return bytes % PAGE ? valloc(bytes) : pvalloc(bytes);
#endif
    if (event->block % 2 && alignment >= sizeof block)
        return posix_memalign(&block, alignment, bytes) ? NULL : block;
    return memalign(alignment, bytes);
}

static void *run_event(const Event *event, void *block) {
    switch (event->op) {
    case OP_MALLOC: return malloc(libc_bytes(event));
    case OP_CALLOC: return calloc(1, libc_bytes(event));
    case OP_REALLOC: return realloc(block, libc_bytes(event));
    case OP_FREE: free(block); return NULL;
    case OP_MEMALIGN: return run_memalign(event, (size_t)1 << event->alignment_log2, libc_bytes(event));
#ifndef MUSL
    case OP_MARK: malloc_trim(0); return block;
#endif
    default: return block;
    }
}

static const Event *events;
static int64_t rows, at;
static void **blocks;
static uint64_t *addresses, *resident, resident_before;
static int filled, huge, point;

static _Atomic int turns[THREADS_MAX]; /* 1: the thread can run */
static pthread_t threads[THREADS_MAX];
static int ended; /* the thread that the main thread has to join, or 0 */
static uint64_t thread_bytes, thread_place;

static void pass_turn(int thread) {
    turns[thread] = 1;
    syscall(SYS_futex, &turns[thread], FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void await_turn(int thread) {
    while (!turns[thread])
        syscall(SYS_futex, &turns[thread], FUTEX_WAIT, 0, NULL, NULL, 0);
    turns[thread] = 0;
}

static void run_row(void) {
    const Event *event = &events[at];
    if (huge)
        disable_huge_pages(0);
    void *block = run_event(event, blocks[event->block]);
    int is_freed = event->op == OP_REALLOC && !libc_bytes(event);
    if (is_request(event) && !block && !is_freed)
        die("the real allocator ran out of memory");
    blocks[event->block] = block;
    addresses[at] = is_request(event) ? (uintptr_t)block : 0;
    if (filled) {
        if (block && is_request(event))
            memset(block, 1, (size_t)event->size);
        if (huge)
            disable_huge_pages(1);
        while (point < RESIDENT_POINTS && at + 1 == rows * (point + 1) / RESIDENT_POINTS)
            resident[point++] = resident_bytes() - resident_before;
    }
    at++;
}

/* Runs the next rows as long as they are this thread's; returns whether the thread has ended. */
static int run_own_rows(int thread) {
    while (at < rows && events[at].thread == thread) {
        int last = events[at].op == OP_THREAD_END;
        run_row();
        if (last)
            return 1;
    }
    return 0;
}

static void *thread_main(void *number) {
    int me = (int)(intptr_t)number;
    volatile char stack[STACK_TOUCHED];
    for (size_t byte = 0; byte < sizeof stack; byte += 512)
        stack[byte] = 1;
#ifndef MUSL
    char *dtv;
    __asm__("mov %%fs:8, %0" : "=r"(dtv)); /* the thread's allocation is one slot before it, after a chunk's header */
    thread_bytes = ((size_t *)dtv)[-3];
    if (me == 1)
        thread_place = (uintptr_t)dtv - 2 * sizeof(size_t);
#endif
    pass_turn(0);
    for (;;) {
        await_turn(me);
        if (run_own_rows(me)) {
            ended = me;
            pass_turn(0);
            return NULL;
        }
        pass_turn(at < rows ? events[at].thread : 0);
    }
}

static void make_threads(int count) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    /* So small that the end of a thread releases nothing to the kernel. */
    if (pthread_attr_setstacksize(&attributes, STACK_BYTES) || pthread_attr_setguardsize(&attributes, 0))
        die("threads cannot be as small as they should be");
    for (int thread = 1; thread < count; thread++) {
        if (pthread_create(&threads[thread], &attributes, thread_main, (void *)(intptr_t)thread))
            die("no thread can be made");
        await_turn(0);
    }
}

static void run_turns(void) {
    while (at < rows) {
        run_own_rows(0);
        if (at < rows) {
            pass_turn(events[at].thread);
            await_turn(0);
        }
#ifndef MUSL /* which would unmap the thread's stack */
        if (ended)
            pthread_join(threads[ended], NULL);
#endif
        ended = 0;
    }
}

static int run(int count, char **arguments) {
    if (count != 5)
        die("usage: libc_harness EVENTS RESULT PLACE MODE");
    int timed = !strcmp(arguments[4], "time"), highest_thread = 0;
    huge = !strcmp(arguments[4], "huge");
    filled = huge || !strcmp(arguments[4], "resident");
    disable_huge_pages(1);
    int file = open(arguments[1], O_RDONLY);
    off_t bytes = lseek(file, 0, SEEK_END);
    int64_t highest = 0;
    rows = (int64_t)((size_t)bytes / sizeof(Event));
    events = raw_mmap(NULL, (size_t)bytes + 1, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (file < 0 || events == MAP_FAILED)
        die("the events cannot be read");
    for (int64_t row = 0; row < rows; row++) {
        highest = events[row].block > highest ? events[row].block : highest;
        highest_thread = events[row].thread > highest_thread ? events[row].thread : highest_thread;
    }
    if (highest_thread >= THREADS_MAX || (timed && highest_thread))
        die("there are too many threads");
    blocks = map_memory((size_t)(highest + 1) * sizeof *blocks);
    size_t result_bytes = sizeof(Header) + ((size_t)rows + RESIDENT_POINTS) * sizeof(uint64_t);
    int out = open(arguments[2], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (out < 0 || ftruncate(out, (off_t)result_bytes))
        die("the result cannot be written");
    Header *result = raw_mmap(NULL, result_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, out, 0);
    if (result == MAP_FAILED)
        die("the result does not fit into the address space");
    addresses = (uint64_t *)(result + 1);
    resident = addresses + rows;
    memset(addresses, 0, result_bytes - sizeof(Header));
    result->rows = (uint64_t)rows;
    result->heap = (uint64_t)syscall(SYS_brk, 0L);
    if (result->heap % PAGE) /* older loaders have their copy of the tunables there */
        result->heap = (uint64_t)syscall(SYS_brk, (result->heap + PAGE - 1) & -PAGE);
    make_threads(highest_thread + 1);
    result->thread_bytes = thread_bytes;
    result->thread_place = thread_place;
    result->base = settle((uintptr_t)strtoull(arguments[3], NULL, 10), PLACE_MODULUS);
    resident_before = resident_bytes();
    syscall(SYS_madvise, 0L, 0L, (long)MARK);
    uint64_t start = now_ns();
    if (timed) {
        for (int64_t row = 0; row < rows; row++) {
            void *block = run_event(&events[row], blocks[events[row].block]);
            blocks[events[row].block] = block;
        }
    } else
        run_turns();
    result->run_ns = now_ns() - start;
    syscall(SYS_madvise, 0L, 0L, (long)MARK);
    syscall(SYS_exit_group, 0L);
    return 0;
}

#ifdef MUSL
int main(int count, char **arguments) {
    return run(count, arguments);
}
#else
/* The code of crt1.o, with the oldest versions of the functions that it calls. */
extern int start_main(int (*)(int, char **), int, char **, void *, void *, void *, void *);
__asm__(".symver start_main,__libc_start_main@GLIBC_2.2.5");
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n\thlt\n");

__attribute__((used)) void start(long *stack) {
    start_main(run, (int)stack[0], (char **)(stack + 1), NULL, NULL, NULL, stack);
}
#endif
