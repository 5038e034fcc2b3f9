/* Runs an allocation trace with a real libpython and writes the address of every block.
 *
 *   harness probe LIBPYTHON INITIALISE                          version and block alignment, on stdout
 *   harness run  LIBPYTHON EVENTS RESULT POOL_BYTES PLACE MODE
 *
 * EVENTS is a file of `Event`s. RESULT gets a `Header`, the addresses (a u64 for each event, 0 if it returned no address),
 * the owners (a u8 for each event, 1 = pymalloc, 0 = libc; padded to 8 bytes) and the `ArenaEvent`s. MODE is
 * `addresses`, or `time`: then the loop only makes the calls, and only run_ns and the arena events are valid.
 *
 * The first mapping of the run ends exactly at Header.base; the next ones are below it without gaps, as in a new
 * process, because every hole above is filled before. PLACE sets the base modulo PLACE_MODULUS, so that the alignment of
 * arenas does not depend on address space randomisation.
 *
 * POOL_BYTES 0: pymalloc is used without Python's initialisation, which works up to CPython 3.11. From 3.12 on,
 * pymalloc's state is in the interpreter, so Python is initialised first and its pools of that size are filled.
 *
 * The harness defines mmap and munmap to see arenas: with -rdynamic, libpython calls these functions.
 * The harness's own memory does not come from the heaps under test; all of it is mapped before the run. */
#define _GNU_SOURCE
#include "address_space.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

enum { OP_MALLOC, OP_CALLOC, OP_REALLOC, OP_FREE };
enum { DOMAIN_RAW, DOMAIN_MEM, DOMAIN_OBJ, DOMAIN_LIBC, DOMAINS };

typedef struct { uint8_t op, domain; uint16_t unused; uint32_t block; uint64_t size; } Event;
typedef struct { int64_t row, kind, address, bytes; } ArenaEvent; /* kind: 1 mapped, 0 unmapped */
typedef struct { uint64_t rows, base, run_ns, arena_events, drained_blocks, cpu_ns; } Header;
typedef struct {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void (*free)(void *);
} Api;

#define SMALL_BYTES 512 /* pymalloc's largest request */
#define CLASS_BYTES 16  /* its size classes in every build that has to be drained */
#define CLASSES (SMALL_BYTES / CLASS_BYTES)
/* A leaf of the 64-bit arena tree covers 16 GiB. With this modulus, each run reaches a new leaf at the same row. */
#define PLACE_MODULUS ((uintptr_t)(sizeof(void *) == 8 ? 1ULL << 34 : 1ULL << 21))
#define ALIGNMENT_MODULUS ((uintptr_t)1 << 21)
#define OWNED_WINDOW ((uintptr_t)(sizeof(void *) == 8 ? 1ULL << 38 : 0xfffff000))

static Api apis[DOMAINS];
static ArenaEvent *arena_log; /* NULL: mappings are not recorded */
static size_t arena_events, arena_events_max;
static int64_t row;
static uint8_t *owned; /* one byte for each page below base: 1 inside a live arena */
static uintptr_t base;

/* Address space */

static void *map_memory(size_t bytes) {
    void *memory = raw_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        die("the harness found no memory for itself");
    return memory;
}

static void log_arena(int kind, void *address, size_t bytes) {
    if (!arena_log)
        return;
    if (arena_events == arena_events_max)
        die("the log of arenas is full");
    arena_log[arena_events++] = (ArenaEvent){row, kind, (int64_t)(uintptr_t)address, (int64_t)bytes};
    if (!owned)
        return;
    if (base - (uintptr_t)address > OWNED_WINDOW || (uintptr_t)address + bytes > base)
        die("an arena was mapped outside the place prepared for arenas");
    memset(owned + (base - (uintptr_t)address - bytes) / PAGE, kind, bytes / PAGE);
}

void *mmap(void *address, size_t bytes, int protection, int flags, int file, off_t offset) {
    void *memory = raw_mmap(address, bytes, protection, flags, file, offset);
    if (memory != MAP_FAILED)
        log_arena(1, memory, bytes);
    return memory;
}

void *mmap64(void *address, size_t bytes, int protection, int flags, int file, off64_t offset) {
    return mmap(address, bytes, protection, flags, file, (off_t)offset);
}

int munmap(void *address, size_t bytes) {
    log_arena(0, address, bytes);
    return (int)syscall(SYS_munmap, address, bytes);
}

static int is_owned(void *block) {
    uintptr_t below = base - 1 - (uintptr_t)block; /* wraps to a large number for a block above base */
    return below < OWNED_WINDOW && owned[below / PAGE];
}

/* The interpreter */

static void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        die(dlerror());
    const char *prefixes[] = {"PyMem_Raw", "PyMem_", "PyObject_"};
    apis[DOMAIN_LIBC] = (Api){malloc, calloc, realloc, free};
    for (int domain = DOMAIN_RAW; domain <= DOMAIN_OBJ; domain++) {
        void **slots = (void **)&apis[domain];
        const char *verbs[] = {"Malloc", "Calloc", "Realloc", "Free"};
        for (int verb = 0; verb < 4; verb++) {
            char name[32];
            snprintf(name, sizeof name, "%s%s", prefixes[domain], verbs[verb]);
            slots[verb] = dlsym(library, name);
        }
    }
    if (!apis[DOMAIN_OBJ].malloc || !apis[DOMAIN_MEM].malloc)
        die("the library has no PyObject_Malloc");
    if (!apis[DOMAIN_RAW].malloc) /* 2.7 calls libc where 3.x calls PyMem_RawMalloc */
        apis[DOMAIN_RAW] = apis[DOMAIN_LIBC];
    return library;
}

static void initialise(void *library) {
    void (*start)(int) = (void (*)(int))dlsym(library, "Py_InitializeEx");
    if (!start)
        die("the library has no Py_InitializeEx");
    start(0);
}

/* Allocates until every pool of every arena is full; pymalloc then behaves like in a new process. Returns the number of
 * allocated blocks. */
static uint64_t drain(size_t pool_bytes) {
    const size_t header_bytes = 48;
    ArenaEvent arenas[2];
    size_t blocks[CLASSES] = {0}, taken = 0;
    arena_log = arenas, arena_events = 0, arena_events_max = 2, row = -1;
    for (; !arena_events; taken++)
        apis[DOMAIN_OBJ].malloc(SMALL_BYTES);
    blocks[CLASSES - 1] = 1; /* a new arena is mapped only for a block without any free pool */
    uintptr_t start = (uintptr_t)arenas[0].address, bytes = (uintptr_t)arenas[0].bytes;
    for (int class = 0; class < CLASSES - 1; class++)
        for (; !blocks[class]; taken++)
            blocks[class] = (uintptr_t)apis[DOMAIN_OBJ].malloc((size_t)(class + 1) * CLASS_BYTES) - start < bytes;
    size_t pools = (bytes - (-start & (pool_bytes - 1))) / pool_bytes;
    for (int class = 0; class < CLASSES; class++) {
        size_t size = (size_t)(class + 1) * CLASS_BYTES, capacity = (pool_bytes - header_bytes) / size;
        size_t wanted = class < CLASSES - 1 ? capacity : capacity * (pools - CLASSES + 1);
        for (; blocks[class] < wanted; blocks[class]++, taken++)
            apis[DOMAIN_OBJ].malloc(size);
    }
    if (arena_events != 1)
        die("draining filled an arena too early: the pool size is not what the interpreter's version says");
    arena_log = NULL, arena_events = 0;
    return taken;
}

/* The run */

static void *allocate_zeroed(const Api *api, size_t size) {
    if (api->calloc)
        return api->calloc(1, size);
    void *block = api->malloc(size); /* 2.7 has no PyObject_Calloc */
    return block ? memset(block, 0, size) : NULL;
}

static inline __attribute__((always_inline)) void run_events(
    const Event *events, int64_t rows, void **blocks, uint64_t *addresses, uint8_t *owners) {
    for (int64_t at = 0; at < rows; at++) {
        const Event *event = &events[at];
        const Api *api = &apis[event->domain & 3];
        void **block = &blocks[event->block];
        if (addresses)
            row = at;
        switch (event->op) {
        case OP_MALLOC: *block = api->malloc((size_t)event->size); break;
        case OP_CALLOC: *block = allocate_zeroed(api, (size_t)event->size); break;
        case OP_REALLOC: /* 2.7's PyMem_Realloc, here libc's, requests 1 byte instead of 0 */
            *block = api->realloc(*block, event->size ? (size_t)event->size : api->free == free);
            break;
        case OP_FREE: api->free(*block); continue;
        default: continue;
        }
        if (addresses) {
            if (!*block)
                die("the real allocator ran out of memory");
            addresses[at] = (uintptr_t)*block;
            owners[at] = (uint8_t)is_owned(*block);
        }
    }
}

static const Event *open_events(const char *path, int64_t *rows) {
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status))
        die("the events cannot be read");
    *rows = (int64_t)((size_t)status.st_size / sizeof(Event));
    const Event *events = raw_mmap(NULL, (size_t)status.st_size + 1, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (events == MAP_FAILED)
        die("the events do not fit into the address space");
    return events;
}

static void *open_result(const char *path, size_t bytes) {
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, (off_t)bytes))
        die("the result cannot be written");
    void *result = raw_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (result == MAP_FAILED)
        die("the result does not fit into the address space");
    return result;
}

static uint64_t now_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int run(char **arguments) {
    size_t pool_bytes = strtoull(arguments[3], NULL, 10);
    uintptr_t place = (uintptr_t)strtoull(arguments[4], NULL, 10);
    int timed = !strcmp(arguments[5], "time");
    int64_t rows, highest = 0;
    void *library = load(arguments[0]);
    const Event *events = open_events(arguments[1], &rows);
    for (int64_t at = 0; at < rows; at++)
        highest = events[at].block > highest ? events[at].block : highest;
    void **blocks = map_memory((size_t)(highest + 1) * sizeof *blocks);
    memset(blocks, 0, (size_t)(highest + 1) * sizeof *blocks);
    size_t logged_at = sizeof(Header) + (size_t)rows * 8 + ((size_t)rows + 7) / 8 * 8;
    size_t logged_max = 2 * (size_t)rows + 1; /* a realloc can map an arena and unmap another */
    Header *result = open_result(arguments[2], logged_at + logged_max * sizeof(ArenaEvent));
    uint64_t *addresses = (uint64_t *)(result + 1);
    uint8_t *owned_pages = map_memory(OWNED_WINDOW / PAGE + 1);
    void *keep = malloc(2 * PAGE); /* the initial heap has 132 KiB; the 128 KiB for a leaf of the arena tree must not fit into it */
    if (!keep)
        die("libc has no memory");
    if (pool_bytes) {
        initialise(library);
        base = settle(PLACE_MODULUS / 2, PLACE_MODULUS); /* draining then allocates the nodes of the tree for all later arenas */
        result->drained_blocks = drain(pool_bytes);
    }
    base = settle(place, pool_bytes ? ALIGNMENT_MODULUS : PLACE_MODULUS);
    arena_log = (ArenaEvent *)((char *)result + logged_at), arena_events_max = logged_max;
    owned = timed ? NULL : owned_pages;
    uint64_t start = now_ns(CLOCK_MONOTONIC), cpu_start = now_ns(CLOCK_THREAD_CPUTIME_ID);
    if (timed)
        run_events(events, rows, blocks, NULL, NULL);
    else
        run_events(events, rows, blocks, addresses, (uint8_t *)(addresses + rows));
    result->cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_start;
    result->run_ns = now_ns(CLOCK_MONOTONIC) - start;
    arena_log = NULL;
    result->rows = (uint64_t)rows, result->base = base, result->arena_events = arena_events;
    _exit(0); /* without cleanup by the interpreter and libc */
}

static int probe(char **arguments) {
    void *library = load(arguments[0]);
    const char *(*version)(void) = (const char *(*)(void))dlsym(library, "Py_GetVersion");
    if (!version)
        die("the library has no Py_GetVersion");
    if (!strcmp(arguments[1], "1"))
        initialise(library);
    uintptr_t bits = 0; /* blocks of one byte are one alignment apart: among many, some differ in this bit */
    for (int i = 0; i < 4096; i++)
        bits |= (uintptr_t)apis[DOMAIN_OBJ].malloc(1);
    printf("%lu\n%s\n", (unsigned long)(bits & -bits), version());
    fflush(stdout);
    _exit(0);
}

int main(int count, char **arguments) {
    if (count == 4 && !strcmp(arguments[1], "probe"))
        return probe(arguments + 2);
    if (count == 8 && !strcmp(arguments[1], "run"))
        return run(arguments + 2);
    die("usage: harness probe LIBPYTHON INITIALISE | harness run LIBPYTHON EVENTS RESULT POOL_BYTES PLACE MODE");
}
