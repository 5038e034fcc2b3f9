/* Code of the harnesses that prepares the address space before a run. Uses only system calls and no heap.
 * The including file defines _GNU_SOURCE. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define TRIAL_BYTES ((uintptr_t)1 << 20)

static void die(const char *what) {
    if (write(2, what, strlen(what)) < 0 || write(2, "\n", 1) < 0)
        _exit(4);
    _exit(3);
}

static void *raw_mmap(void *address, size_t bytes, int protection, int flags, int file, off_t offset) {
#ifdef SYS_mmap2
    return (void *)syscall(SYS_mmap2, address, bytes, protection, flags, file, offset / (off_t)PAGE);
#else
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, file, offset);
#endif
}

static void *reserve(uintptr_t address, size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (address ? MAP_FIXED_NOREPLACE : 0);
    return raw_mmap((void *)address, bytes, PROT_NONE, flags, -1, 0);
}

static char text[1 << 18];

/* Reads a file into `text`; returns its length. */
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

/* Returns the start of the lowest mapping of mmap. Below the program break are the program and its heap. */
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

/* Fills every hole above the lowest mapping, and the space below it down to an address that is `place` modulo `modulus`.
 * Returns this address, which is the end of the next mapping. */
static uintptr_t settle(uintptr_t place, uintptr_t modulus) {
    uintptr_t floor = find_floor();
    for (size_t bytes = (size_t)1 << (sizeof(void *) == 8 ? 30 : 26); bytes >= PAGE; bytes >>= 1)
        for (;;) {
            void *filler = reserve(0, bytes);
            if (filler == MAP_FAILED)
                break;
            if ((uintptr_t)filler < floor) {
                syscall(SYS_munmap, filler, bytes);
                break;
            }
        }
    size_t gap = (floor - place) % modulus;
    if (gap && reserve(floor - gap, gap) != (void *)(floor - gap))
        die("the address space beneath the lowest mapping is taken");
    void *trial = reserve(0, TRIAL_BYTES);
    if ((uintptr_t)trial + TRIAL_BYTES != floor - gap)
        die("mappings are not handed out from the top downwards on this system");
    syscall(SYS_munmap, trial, TRIAL_BYTES);
    return floor - gap;
}
