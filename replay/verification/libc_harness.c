/* Plays an allocation trace through the C library's malloc and writes down where every block went.
 *
 *   libc_harness EVENTS RESULT PLACE MODE
 *
 * EVENTS is a file of `Event`s; RESULT becomes a `Header`, the addresses (u64 an event, 0 where nothing was handed
 * out) and RESIDENT_POINTS numbers of resident bytes. A mark among the events is a call of malloc_trim(0). MODE is
 *
 *   addresses   as it says
 *   time        the loop does nothing besides the calls; only play_ns counts
 *   resident    every block is written to as far as it was asked for; at evenly spaced rows, and at the end, the
 *               resident bytes of the process are read, less those before the play
 *
 * The heap is pristine: the program never allocates before the play. The first mapping made while playing ends at
 * Header.base, the following ones lie beneath it without a gap, as in a fresh process: every hole higher up is filled
 * beforehand, and PLACE fixes base modulo PLACE_MODULUS. An madvise with the advice MARK, which the kernel refuses,
 * stands before and after the play in the eyes of whoever traces system calls.
 *
 * It starts by itself and needs no symbol younger than glibc 2.2.5, so that any version's ld.so can run it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { OP_MALLOC, OP_CALLOC, OP_REALLOC, OP_FREE, OP_MARK = 32 };
enum { MARK = 12345, RESIDENT_POINTS = 10 };

typedef struct { uint8_t op, domain; uint16_t thread; uint32_t block; uint64_t size; } Event;
typedef struct { uint64_t rows, base, heap, play_ns; } Header;

#define PAGE ((size_t)4096)
#define PLACE_MODULUS ((uintptr_t)1 << 34)

static void die(const char *what) {
    if (write(2, what, strlen(what)) < 0 || write(2, "\n", 1) < 0)
        _exit(4);
    _exit(3);
}

static void *map(uintptr_t address, size_t bytes, int protection, int flags, int file) {
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, file, 0L);
}

static void *map_memory(size_t bytes) {
    void *memory = map(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1);
    if (memory == MAP_FAILED)
        die("the harness found no memory for itself");
    return memory;
}

static void *reserve(uintptr_t address, size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (address ? MAP_FIXED_NOREPLACE : 0);
    return map(address, bytes, PROT_NONE, flags, -1);
}

static char text[1 << 18];

static size_t read_text(const char *path) {
    size_t length = 0;
    ssize_t got;
    int file = open(path, O_RDONLY);
    while (file >= 0 && length < sizeof text - 1 && (got = read(file, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)got;
    close(file);
    text[length] = 0;
    return length;
}

/* Start of the lowest mapping that mmap made: what lies under the program break is the program and its heap. */
static uintptr_t find_floor(void) {
    size_t length = read_text("/proc/self/maps");
    uintptr_t heap_end = (uintptr_t)syscall(SYS_brk, 0L);
    for (char *line = text; line < text + length; line = strchr(line, '\n') + 1) {
        uintptr_t start = (uintptr_t)strtoull(line, NULL, 16);
        if (start >= heap_end)
            return start;
    }
    die("/proc/self/maps does not show where mappings start");
    return 0;
}

/* Fills every hole above the lowest mapping; gives an address beneath it that is `place` modulo PLACE_MODULUS. */
static uintptr_t settle(uintptr_t place) {
    uintptr_t floor = find_floor();
    for (size_t bytes = (size_t)1 << 30; bytes >= PAGE; bytes >>= 1)
        for (;;) {
            void *filler = reserve(0, bytes);
            if (filler == MAP_FAILED)
                break;
            if ((uintptr_t)filler < floor) {
                syscall(SYS_munmap, filler, bytes);
                break;
            }
        }
    size_t gap = (floor - place) % PLACE_MODULUS;
    if (gap && reserve(floor - gap, gap) != (void *)(floor - gap))
        die("the address space beneath the lowest mapping is taken");
    void *trial = reserve(0, PAGE);
    if ((uintptr_t)trial + PAGE != floor - gap)
        die("mappings are not handed out from the top downwards on this system");
    syscall(SYS_munmap, trial, PAGE);
    return floor - gap;
}

static uint64_t resident_bytes(void) {
    read_text("/proc/self/smaps_rollup");
    char *line = strstr(text, "\nAnonymous:"); /* code that is run for the first time is no memory of malloc's */
    return line ? strtoull(line + 11, NULL, 10) * 1024 : 0;
}

static uint64_t now_ns(void) {
    struct timespec time;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void *play_event(const Event *event, void *block) {
    switch (event->op) {
    case OP_MALLOC: return malloc((size_t)event->size);
    case OP_CALLOC: return calloc(1, (size_t)event->size);
    case OP_REALLOC: return realloc(block, event->size ? (size_t)event->size : 1); /* of 0 bytes it would free */
    case OP_FREE: free(block); return NULL;
    case OP_MARK: malloc_trim(0); return block;
    default: return block;
    }
}

static int play(int count, char **arguments) {
    if (count != 5)
        die("usage: libc_harness EVENTS RESULT PLACE MODE");
    int timed = !strcmp(arguments[4], "time"), filled = !strcmp(arguments[4], "resident");
    syscall(SYS_prctl, PR_SET_THP_DISABLE, 1L, 0L, 0L, 0L);
    int file = open(arguments[1], O_RDONLY);
    off_t bytes = lseek(file, 0, SEEK_END);
    int64_t rows = (int64_t)((size_t)bytes / sizeof(Event)), highest = 0;
    const Event *events = map(0, (size_t)bytes + 1, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file);
    if (file < 0 || events == MAP_FAILED)
        die("the events cannot be read");
    for (int64_t at = 0; at < rows; at++)
        highest = events[at].block > highest ? events[at].block : highest;
    void **blocks = map_memory((size_t)(highest + 1) * sizeof *blocks);
    size_t result_bytes = sizeof(Header) + ((size_t)rows + RESIDENT_POINTS) * sizeof(uint64_t);
    int out = open(arguments[2], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (out < 0 || ftruncate(out, (off_t)result_bytes))
        die("the result cannot be written");
    Header *result = map(0, result_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, out);
    if (result == MAP_FAILED)
        die("the result does not fit into the address space");
    uint64_t *addresses = (uint64_t *)(result + 1), *resident = addresses + rows;
    memset(addresses, 0, result_bytes - sizeof(Header));
    result->rows = (uint64_t)rows;
    result->base = settle((uintptr_t)strtoull(arguments[3], NULL, 10));
    result->heap = (uint64_t)syscall(SYS_brk, 0L);
    if (result->heap % PAGE) /* older loaders keep their copy of the tunables there */
        result->heap = (uint64_t)syscall(SYS_brk, (result->heap + PAGE - 1) & -PAGE);
    uint64_t before = resident_bytes();
    int point = 0;
    syscall(SYS_madvise, 0L, 0L, (long)MARK);
    uint64_t start = now_ns();
    if (timed) {
        for (int64_t at = 0; at < rows; at++) {
            void *block = play_event(&events[at], blocks[events[at].block]);
            blocks[events[at].block] = block;
        }
    } else
        for (int64_t at = 0; at < rows; at++) {
            const Event *event = &events[at];
            void *block = play_event(event, blocks[event->block]);
            if (event->op <= OP_REALLOC && !block)
                die("the real allocator ran out of memory");
            blocks[event->block] = block;
            addresses[at] = event->op <= OP_REALLOC ? (uintptr_t)block : 0;
            if (filled) {
                if (block && event->op <= OP_REALLOC)
                    memset(block, 1, (size_t)event->size);
                while (point < RESIDENT_POINTS && at + 1 == rows * (point + 1) / RESIDENT_POINTS)
                    resident[point++] = resident_bytes() - before;
            }
        }
    result->play_ns = now_ns() - start;
    syscall(SYS_madvise, 0L, 0L, (long)MARK);
    _exit(0);
}

/* What crt1.o would do, with the oldest version of what it calls. */
extern int start_main(int (*)(int, char **), int, char **, void *, void *, void *, void *);
__asm__(".symver start_main,__libc_start_main@GLIBC_2.2.5");
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n\thlt\n");

__attribute__((used)) void start(long *stack) {
    start_main(play, (int)stack[0], (char **)(stack + 1), NULL, NULL, NULL, stack);
}
